// Runs a traced cell forward and backward through time, one model after another, a slice of LANES sequences at once.
//
// What is run is data: lists of instructions over tiles (row, lane) that Python derives from the family's own step and
// readout (see trace/, derive/, and engine/records.py, whose enums and records these here must match; a test compares
// the enums). An operand is a row of a memory space; of each space a worker has one copy, of the model it runs:
//   SCRATCH         values of one list of instructions; rows are used again as soon as a value has no more readers.
//   RECORD          per time step, the states and what the way back reads; PREVIOUS is the step before, whose first
//                   holds the initial states. Without gradients two steps take turns.
//   INPUT           per time step, inputs and noise. INPUT_GRADIENT: their gradients, of one step.
//   RING            per step, of the last `ring_steps`, gradients that products need for their weights: these are taken
//                   for a whole ring at once (`weight_jobs`), so that sums stay in registers. Its first rows are the
//                   CARRY of states whose gradients are such factors; NEXT_RING is the step before, LATER_RING the
//                   one after.
//   CARRY           gradients of the states after a step; NEXT_CARRY those before it, the CARRY of the step before.
//   VECTORS         biases and other vectors of params, a number (no row) each; SUMS their gradients, lane by lane,
//                   where they are summed tile by tile.
//   PARAMS          whole tensors, computed from a model's params before its first step, and their gradients.
#include "answers.h"
#include "kernels.h"

enum Opcode {
    PRODUCT, COPY, ZERO, ADD, SUB, MUL, DIV, FMA, AFFINE, SIGMOID, TANH, RELU, LEAKY_RELU, EXP, LOG, SQRT, SIN, COS,
    SOFTPLUS, ABS, MAXIMUM, MINIMUM, SIGMOID_GRAD, TANH_GRAD, RELU_GRAD, LEAKY_RELU_GRAD, SPIKE, SPIKE_GRAD, ABS_GRAD,
    SOFTPLUS_GRAD, GREATER_GRAD, SIGMOID_GRAD_OF_PRODUCT, TANH_GRAD_OF_PRODUCT, ADD_VECTOR, MUL_VECTOR, FMA_VECTOR, SUM_INTO,
    SUM_PRODUCT_INTO, SUM_CROSSED_INTO, RECIPROCAL, CLAMP_MIN, CLAMP_MIN_GRAD, GATHER, SCATTER, LOAD
};
enum Space { SCRATCH, RECORD, PREVIOUS, INPUT, RING, NEXT_RING, LATER_RING, CARRY, NEXT_CARRY, INPUT_GRADIENT, VECTORS, SUMS, PARAMS, NUM_SPACES };
enum Loss { GIVEN, CROSS_ENTROPY, SQUARED_ERROR };

typedef struct {
    int64_t opcode, rows, out[2], a[2], b[2], c[2], constant, first_term, num_terms, first_addend, num_addends;
} Instruction;
typedef struct { int64_t matrix, cols, tile[2]; } TermSpec;
// A constant, or (-1: none) a vector, times a tile. Of sums of products two are the factors of a product.
typedef struct { int64_t tile[2], constant, vector; } AddendSpec;
// One block of rows of a matrix or vector: where it lies in the tensors of a model (tensor -1: zeros).
typedef struct { int64_t tensor, offset, row_stride, col_stride, first_row, rows; } Piece;
// `packed` and `gradient` say where it lies there (gradient -1: not wanted); `sums`, of a vector whose gradient is summed
// up tile by tile, where in SUMS (-1: not so). `scale`: the constant by which a vector is multiplied.
typedef struct { int64_t rows, cols, first_piece, num_pieces, packed, transposed, gradient, sums, scale; } Matrix;
// matrix -1 - n: the gradient of the bias n. Jobs with the same dy follow one another and have as many rows; at the last
// `silent_steps` dy is zero for certain and x, by which it would be multiplied, perhaps infinite.
typedef struct { int64_t matrix, x[2], dy[2], silent_steps; } WeightJob;

typedef struct {
    // Program.
    int64_t num_step, num_readout, num_readout_back, num_step_back, num_first_back, num_last_back_at;
    int64_t num_deferring_step_back, num_deferred_readout_back;
    const Instruction *step, *readout, *readout_back, *step_back;
    const Instruction *first_back;   // instead of `step_back` at the first time step
    const Instruction *last_back;    // and of both at the last ones: of the last step, then of the one before it, ...
    const int64_t *last_back_at;     // where the list of each of them starts, and where the last one ends
    // Instead of `step_back`, where the step before is read out for the loss, and there instead of `readout_back`: what
    // the one would carry there is part of the sums of the other.
    const Instruction *deferring_step_back, *deferred_readout_back;
    const TermSpec *terms;
    const AddendSpec *addends;
    const double *constants;
    int64_t num_matrices, num_vectors, num_jobs;
    const Matrix *matrices, *vectors;
    const Piece *pieces;
    const WeightJob *jobs;
    // Sizes, in rows (a row is LANES numbers) or, for packed weights and gradients, in numbers.
    int64_t record_rows, input_rows, ring_rows, carry_rows, scratch_rows, sums_rows, carried_in_ring;
    int64_t output_rows, ring_steps;
    int64_t packed_size, vector_size, gradient_size;
    // What is computed from a model's params before its first step, `computed` further tensors after the `stored` ones: a
    // flat program on whole tensors, each a row of numbers (see flat.py). Without one, they are given as data.
    int64_t num_prologue, num_prologue_back, has_prologue, stored, params_rows;
    const Instruction *prologue, *prologue_back;
    const int64_t *tables;
    const int64_t *param_at, *param_gradient_at;                  // per stored tensor: rows of PARAMS, or -1
    const int64_t *result_at, *result_gradient_at, *result_rows;  // per computed tensor
    // Per tensor in data: its numbers, and rows of PARAMS for the gradients of one slice where some element has several
    // (-1: it has not), so that the sum over slices is the same in whatever parts they are run.
    const int64_t *tensor_size, *direct_at;
    int64_t num_states, num_inputs;
    const int64_t *state_at, *state_rows, (*carry_at)[2], (*next_carry_at)[2], *input_at, *input_size;
    int64_t output_at[2], output_gradient_at[2];
    // Data. Tensors lead with models and are dense after that; a stride is in numbers from model to model.
    int64_t models, time, batch, tensors;
    const REAL *const *tensor;
    const int64_t *tensor_stride;
    const REAL *const *input;    // x, then noises: (time, batch, axis)
    const int64_t *input_stride;
    const REAL *const *initial;  // (batch, axis)
    const int64_t *initial_stride;
    REAL *outputs;               // (models, shown_steps, batch, output), of the last steps
    REAL *const *states;         // (models, shown_steps, batch, axis)
    int64_t shown_steps;
    int64_t loss_kind, scored, classes, want_gradients;
    const int64_t *target_class; // (models, scored, batch, heads)
    const REAL *target_value;    // (models, scored, batch, output)
    const REAL *weight;          // (updates, models, scored): what one sequence at one step counts
    double *losses;              // (models)
    double *verdicts;            // (models, 4), see answers.h: on the shown steps, if wanted
    const REAL *output_gradient; // (models, time, batch, output)
    const REAL *const *state_gradient;
    REAL *const *gradient;       // per tensor, or null; a model's own is overwritten
    const int64_t *gradient_stride;  // 0 where no gradient is wanted
    REAL *const *input_gradient; // per input, or null
    REAL *const *initial_gradient;
    // Instead of writing gradients: `updates` of every model that is `learning` (models), one after another, each on the
    // next `high - low` sequences. `move` changes the model's tensors by its loss and gradients, which lie side by side
    // in the order of the tensors, with room for `move_room` numbers; where it returns 0 it is not called again.
    int64_t updates, move_room;
    const unsigned char *learning;
    int (*move)(const void *how, int64_t model, int64_t update, double loss, const REAL *gradients, REAL *room);
    const void *how;
} Job;

typedef struct {
    REAL *base[NUM_SPACES];
    REAL *record, *inputs, *ring, *carry, *packed, *slice_gradient, *row, *room;
    const REAL **source; // per tensor, of the model that is run
    REAL **gradient;     // per stored tensor, of the model that is run, or null
    REAL **part;         // where the gradients of one slice are added: those, or rows of PARAMS
    const REAL *weight;  // (scored), of its update
    Soon soon[2];
} Memory;

#define EACH(expression)                                     \
    for (int64_t i = 0; i < n; i += WIDTH) {                 \
        V x = load(a + i);                                   \
        store(out + i, expression);                          \
    }                                                        \
    break;
#define EACH2(expression)                                    \
    for (int64_t i = 0; i < n; i += WIDTH) {                 \
        V x = load(a + i), y = load(b + i);                  \
        store(out + i, expression);                          \
    }                                                        \
    break;
#define EACH3(expression)                                    \
    for (int64_t i = 0; i < n; i += WIDTH) {                 \
        V x = load(a + i), y = load(b + i), z = load(c + i); \
        store(out + i, expression);                          \
    }                                                        \
    break;
#define EACH_ROW(expression)                                 \
    for (int64_t r = 0; r < rows; r++) {                     \
        V y = splat(b[r]);                                   \
        for (int64_t i = r * LANES; i < (r + 1) * LANES; i += WIDTH) { \
            V x = load(a + i);                               \
            store(out + i, expression);                      \
        }                                                    \
    }                                                        \
    break;

INLINE V squared(V x) { return x * x; }
INLINE V absolute(V x) { return pick(x < (V){0}, -x, x); }

static void apply(int64_t opcode, int64_t rows, REAL *out, const REAL *a, const REAL *b, const REAL *c, const double *k) {
    int64_t n = rows * LANES;
    REAL k0 = (REAL)k[0], k1 = (REAL)k[1];
    V zero = {0};
    switch (opcode) {
        case COPY: EACH(x)
        case ZERO: memset(out, 0, n * sizeof(REAL)); break;
        case ADD: EACH2(x + y)
        case SUB: EACH2(x - y)
        case MUL: EACH2(x * y)
        case DIV: EACH2(x / y)
        case FMA: EACH3(x * y + z)
        case AFFINE: EACH(x * k0 + k1)
        case SIGMOID: EACH(v_sigmoid(x))
        case TANH: EACH(v_tanh(x))
        case RELU: EACH(pick(x < zero, zero, x))
        case LEAKY_RELU: EACH(pick(x < zero, x * k0, x))
        case EXP: EACH(v_exp(x))
        case LOG: EACH(v_log(x))
        case SQRT: EACH(v_sqrt(x))
        case SIN: EACH(v_sin(x))
        case COS: EACH(v_cos(x))
        case SOFTPLUS: EACH(pick(x > splat(20), x, v_log1p(v_exp(x))))
        case ABS: EACH(absolute(x))
        case MAXIMUM: EACH2(pick(x != x, x, pick(x > y, x, y)))
        case MINIMUM: EACH2(pick(x != x, x, pick(x < y, x, y)))
        case SIGMOID_GRAD: EACH2(x * (y - y * y))
        case TANH_GRAD: EACH2(x - x * y * y)
        case RELU_GRAD: EACH2(pick(y > zero, x, zero))
        case LEAKY_RELU_GRAD: EACH2(pick(y > zero, x, x * k0))
        case SPIKE: EACH(pick(x + k1 > zero, splat(1), zero))
        // The surrogate: as steep as a fast sigmoid at y.
        case SPIKE_GRAD: EACH2(x / squared(absolute(y + k1) * k0 + 1))
        case ABS_GRAD: EACH2(pick(y > zero, x, pick(y < zero, -x, zero)))
        case SOFTPLUS_GRAD: EACH2(pick(y > splat(20), x, x * v_sigmoid(y)))
        // The share of the larger of y and z, halves where they are equal.
        case GREATER_GRAD: EACH3(pick(y > z, x, pick(y == z, x * (REAL)0.5, zero)))
        case SIGMOID_GRAD_OF_PRODUCT: EACH3(x * y * (z - z * z))
        case TANH_GRAD_OF_PRODUCT: EACH3(x * y * (1 - z * z))
        case ADD_VECTOR: EACH_ROW(x + y)
        case MUL_VECTOR: EACH_ROW(x * y)
        case FMA_VECTOR:
            for (int64_t r = 0; r < rows; r++)
                for (int64_t i = r * LANES; i < (r + 1) * LANES; i += WIDTH)
                    store(out + i, load(a + i) * b[r] + load(c + i));
            break;
        case RECIPROCAL: EACH(1 / x)
        case CLAMP_MIN: EACH(pick(x < splat(k0), splat(k0), x))
        case CLAMP_MIN_GRAD: EACH2(pick(y < splat(k0), zero, x))
        case SUM_INTO:
            for (int64_t i = 0; i < n; i += WIDTH) store(out + i, load(out + i) + load(a + i));
            break;
    }
}

INLINE REAL *at(const Memory *m, const int64_t place[2]) {
    return m->base[place[0]] + (place[0] == VECTORS ? place[1] : place[1] * LANES);
}

// An operation of a flat program: what is beyond its last number repeats it.
static void move_numbers(const Job *job, const Instruction *op, REAL *out, const REAL *a) {
    int64_t count = op->num_terms, room = op->rows * LANES;
    const int64_t *table = job->tables + op->first_term;
    if (op->opcode == SCATTER) {
        memset(out, 0, room * sizeof(REAL));
        for (int64_t i = 0; i < count; i++) out[table[i]] += a[i];
        return;
    }
    for (int64_t i = 0; i < count; i++)
        out[i] = op->opcode == GATHER ? a[table[i]] : (REAL)job->constants[op->constant + i];
    for (int64_t i = count; i < room; i++) out[i] = out[count - 1];
}

static void run_product(const Job *job, Memory *m, const Instruction *op) {
    Term term[MAX_TERMS];
    Addend addend[MAX_ADDENDS];
    REAL constant[MAX_ADDENDS];
    const TermSpec *terms = job->terms + op->first_term;
    const AddendSpec *addends = job->addends + op->first_addend;
    for (int i = 0; i < op->num_terms; i++)
        term[i] = (Term){m->packed + job->matrices[terms[i].matrix].packed, at(m, terms[i].tile), terms[i].cols};
    for (int i = 0; i < op->num_addends; i++) {
        int64_t vector = addends[i].vector;
        constant[i] = (REAL)job->constants[addends[i].constant];
        addend[i] = (Addend){at(m, addends[i].tile), vector < 0 ? constant + i : m->base[VECTORS] + vector, vector >= 0};
    }
    const REAL *bias = op->b[0] < 0 ? 0 : at(m, op->b);
    Sum sum = {op->rows, (int)op->num_terms, (int)op->num_addends, term, addend, bias, at(m, op->out)};
    product(&sum, m->soon);
}

static void run_sum_of_products(const Job *job, Memory *m, const Instruction *op) {
    Pair pair[MAX_PAIRS];
    const AddendSpec *factor = job->addends + op->first_addend;
    for (int i = 0; i < op->num_addends / 2; i++, factor += 2)
        pair[i] = (Pair){at(m, factor[0].tile), at(m, factor[1].tile), (REAL)job->constants[factor[0].constant]};
    int count = (int)op->num_addends / 2, plain = 1;
    int64_t n = op->rows * LANES;
    REAL *out = at(m, op->out);
    if (op->opcode == SUM_CROSSED_INTO) {
        for (int i = 0; i < 3; i++) plain &= pair[i].scale == 1;
        if (plain && pair[3].scale == 1) add_crossed(1, n, out, at(m, op->b), pair);
        else if (plain && pair[3].scale == -1) add_crossed(-1, n, out, at(m, op->b), pair);
        else add_crossed(0, n, out, at(m, op->b), pair);
        return;
    }
    for (int i = 0; i < count; i++) plain &= pair[i].scale == 1;
    switch (count) {
        case 1: if (plain) add_products(1, 1, n, out, pair); else add_products(1, 0, n, out, pair); return;
        case 2: if (plain) add_products(2, 1, n, out, pair); else add_products(2, 0, n, out, pair); return;
        case 3: add_products(3, 0, n, out, pair); return;
        case 4: add_products(4, 0, n, out, pair); return;
    }
}

static void run(const Job *job, Memory *m, const Instruction *list, int64_t count) {
    for (const Instruction *op = list; op < list + count; op++) {
        if (op->opcode >= GATHER) {
            move_numbers(job, op, at(m, op->out), at(m, op->a));
            continue;
        }
        if (op->opcode == SUM_PRODUCT_INTO || op->opcode == SUM_CROSSED_INTO) {
            run_sum_of_products(job, m, op);
            continue;
        }
        if (op->opcode != PRODUCT) {
            apply(op->opcode, op->rows, at(m, op->out), at(m, op->a), at(m, op->b), at(m, op->c),
                  job->constants + op->constant);
            continue;
        }
        run_product(job, m, op);
    }
}

INLINE int64_t ring_place(const Job *job, int64_t t) {
    return (uint32_t)t % (uint32_t)job->ring_steps;  // narrow numbers are divided several times as fast
}

static void at_step(Memory *m, const Job *job, int64_t t) {
    int64_t record = job->record_rows * LANES;
    // The record before the first step holds the initial state. Without gradients two take turns.
    int64_t now = job->want_gradients ? t + 1 : ~t & 1, before = job->want_gradients ? t : t & 1;
    m->base[RECORD] = m->record + now * record;
    m->base[PREVIOUS] = m->record + before * record;
    m->base[INPUT] = m->inputs + t * job->input_rows * LANES;
    m->base[NEXT_RING] = m->ring + ring_place(job, t) * job->ring_rows * LANES;
    m->base[RING] = m->base[NEXT_RING] + job->ring_rows * LANES;
    m->base[LATER_RING] = m->ring + (ring_place(job, t + 1) + 1) * job->ring_rows * LANES;
    m->base[CARRY] = m->carry + (t & 1) * job->carry_rows * LANES;
    m->base[NEXT_CARRY] = m->carry + (~t & 1) * job->carry_rows * LANES;
    int64_t half = (job->record_rows + 1) / 2;
    m->soon[0] = soon(m->base[RECORD], half);
    m->soon[1] = soon(m->base[RECORD] + half * LANES, job->record_rows - half);
}

#if defined(__GNUC__) && !defined(__clang__)
// All lanes of (batch, axis) at `from` as a tile, for a SIZE that is a power of two: even and odd places are parted until
// the bits of a number's place have turned so far that those of its lane come last.
INLINE void turned(REAL *tile, const REAL *from, const int SIZE) {
    M even, odd;
    for (int i = 0; i < WIDTH; i++) even[i] = 2 * i, odd[i] = 2 * i + 1;
    for (int64_t l = 0; l < LANES; l += WIDTH) {
        V now[16], next[16];
        UNROLL(16)
        for (int i = 0; i < SIZE; i++) memcpy(&now[i], from + l * SIZE + i * WIDTH, sizeof(V));
        UNROLL(4)
        for (int k = 1; k < SIZE; k *= 2) {
            UNROLL(8)
            for (int i = 0; i < SIZE / 2; i++) {
                next[i] = __builtin_shuffle(now[2 * i], now[2 * i + 1], even);
                next[SIZE / 2 + i] = __builtin_shuffle(now[2 * i], now[2 * i + 1], odd);
            }
            UNROLL(16)
            for (int i = 0; i < SIZE; i++) now[i] = next[i];
        }
        UNROLL(16)
        for (int i = 0; i < SIZE; i++) store(tile + i * LANES + l, now[i]);
    }
}
#endif


// (batch, axis) at `from` <-> tile (axis, lane); lanes without a sequence are zero.
static void to_tile(REAL *tile, const REAL *from, int64_t size, int64_t lanes) {
    if (lanes < LANES) memset(tile, 0, size * LANES * sizeof(REAL));
    if (size == 1) {
        memcpy(tile, from, lanes * sizeof(REAL));
        return;
    }
#if defined(__GNUC__) && !defined(__clang__)
    if (lanes == LANES) switch (size) {
        case 2: turned(tile, from, 2); return;
        case 4: turned(tile, from, 4); return;
        case 8: turned(tile, from, 8); return;
        case 16: turned(tile, from, 16); return;
    }
#endif
    for (int64_t r = 0; r < size; r++)
        for (int64_t l = 0; l < lanes; l++) tile[r * LANES + l] = from[l * size + r];
}
// The same for inputs and states: lanes without a sequence repeat the last one, because functions that are finite on what
// is there may not be so at zero, and infinity times a gradient of zero is not zero.
static void to_full_tile(REAL *tile, const REAL *from, int64_t size, int64_t lanes) {
    to_tile(tile, from, size, lanes);
    for (int64_t r = 0; r < size; r++)
        for (int64_t l = lanes; l < LANES; l++) tile[r * LANES + l] = tile[r * LANES + lanes - 1];
}
static void add_to_tile(REAL *tile, const REAL *from, int64_t size, int64_t lanes) {
    for (int64_t r = 0; r < size; r++)
        for (int64_t l = 0; l < lanes; l++) tile[r * LANES + l] += from[l * size + r];
}
static void from_tile(REAL *to, const REAL *tile, int64_t size, int64_t lanes) {
    for (int64_t first = 0; first < size; first += 8)  // eight rows at a time stay in the nearest cache
        for (int64_t l = 0; l < lanes; l++)
            for (int64_t r = first; r < size && r < first + 8; r++) to[l * size + r] = tile[r * LANES + l];
}

// The tensors of a model, those that its params give included.
static void find_sources(const Job *job, Memory *m, int64_t model) {
    int64_t in_data = job->has_prologue ? job->stored : job->tensors;
    for (int64_t i = 0; i < in_data; i++) m->source[i] = job->tensor[i] + model * job->tensor_stride[i];
    if (!job->has_prologue) return;
    for (int64_t i = 0; i < job->stored; i++) {
        if (job->param_at[i] < 0) continue;
        int64_t size = job->tensor_size[i];
        REAL *to = m->base[PARAMS] + job->param_at[i] * LANES;
        memcpy(to, m->source[i], size * sizeof(REAL));
        for (; size % LANES; size++) to[size] = to[size - 1];
    }
    run(job, m, job->prologue, job->num_prologue);
    for (int64_t i = job->stored; i < job->tensors; i++)
        m->source[i] = m->base[PARAMS] + job->result_at[i - job->stored] * LANES;
}

// Rows of a matrix as they lie in a tensor of a model.
INLINE const REAL *piece_of(const Memory *m, const Piece *p) { return m->source[p->tensor] + p->offset; }

static void pack_matrix(const Job *job, const Memory *m, const Matrix *matrix) {
    static const REAL zero = 0;
    REAL *to = m->packed + matrix->packed;
    for (const Piece *p = job->pieces + matrix->first_piece; p < job->pieces + matrix->first_piece + matrix->num_pieces; p++) {
        int64_t is_zero = p->tensor < 0, row_stride = is_zero ? 0 : p->row_stride, col_stride = is_zero ? 0 : p->col_stride;
        const REAL *from = is_zero ? &zero : piece_of(m, p);
        if (matrix->transposed)
            pack(to, matrix->cols, matrix->rows, (Block){0, matrix->cols, p->first_row, p->rows}, from, col_stride, row_stride);
        else
            pack(to, matrix->rows, matrix->cols, (Block){p->first_row, p->rows, 0, matrix->cols}, from, row_stride, col_stride);
    }
}

static void pack_model(const Job *job, Memory *m, int64_t model) {
    find_sources(job, m, model);
    for (int64_t i = 0; i < job->num_matrices; i++) pack_matrix(job, m, job->matrices + i);
    for (int64_t i = 0; i < job->num_vectors; i++) {
        const Matrix *vector = job->vectors + i;
        REAL scale = (REAL)job->constants[vector->scale];
        for (const Piece *p = job->pieces + vector->first_piece; p < job->pieces + vector->first_piece + vector->num_pieces; p++)
            for (int64_t r = 0; r < p->rows; r++)
                m->base[VECTORS][vector->packed + p->first_row + r] =
                    p->tensor < 0 ? 0 : piece_of(m, p)[r * p->row_stride] * scale;
    }
}

// Zeros where the gradients of a model are to lie: in the tensors that are given, or in one row for `move`.
static void zero_gradients(const Job *job, const Memory *m, int64_t model) {
    REAL *next = m->row;
    for (int64_t i = 0; i < job->tensors; i++) {
        int64_t size = job->gradient_stride[i];
        m->gradient[i] = size == 0 ? 0 : job->move ? next : job->gradient[i] + model * size;
        if (size) memset(m->gradient[i], 0, size * sizeof(REAL));
        next += size;
    }
}

// Where a slice's gradients are added.
static void zero_parts(const Job *job, const Memory *m) {
    for (int64_t i = 0; i < job->tensors; i++) m->part[i] = m->gradient[i];
    for (int64_t i = 0; i < (job->has_prologue ? job->stored : job->tensors); i++) {
        if (job->direct_at[i] < 0 || !m->gradient[i]) continue;
        m->part[i] = m->base[PARAMS] + job->direct_at[i] * LANES;
        memset(m->part[i], 0, job->tensor_size[i] * sizeof(REAL));
    }
    if (!job->has_prologue) return;
    for (int64_t i = 0; i < job->tensors - job->stored; i++) {
        int64_t at = job->result_gradient_at[i];
        m->part[job->stored + i] = at < 0 ? 0 : m->base[PARAMS] + at * LANES;
        if (at >= 0) memset(m->base[PARAMS] + at * LANES, 0, job->result_rows[i] * LANES * sizeof(REAL));
    }
}

// From the parts of a slice to the gradients of a model, those that come through computed tensors included.
static void add_parts(const Job *job, Memory *m) {
    if (job->has_prologue) run(job, m, job->prologue_back, job->num_prologue_back);
    for (int64_t i = 0; i < (job->has_prologue ? job->stored : job->tensors); i++) {
        if (job->direct_at[i] < 0 || !m->gradient[i]) continue;
        const REAL *direct = m->base[PARAMS] + job->direct_at[i] * LANES;
        int64_t at = job->has_prologue ? job->param_gradient_at[i] : -1, size = job->tensor_size[i];
        const REAL *through = m->base[PARAMS] + (at < 0 ? 0 : at) * LANES;
        if (at < 0)
            for (int64_t k = 0; k < size; k++) m->gradient[i][k] += direct[k];
        else
            for (int64_t k = 0; k < size; k++) m->gradient[i][k] += direct[k] + through[k];
    }
}

// Adds what a slice gave to the gradients of a model, slice after slice, so that the sum does not depend on threads.
static void add_gradients(const Job *job, const Memory *m) {
    for (int64_t kind = 0; kind < 2; kind++)
        for (int64_t i = 0; i < (kind ? job->num_vectors : job->num_matrices); i++) {
            const Matrix *matrix = (kind ? job->vectors : job->matrices) + i;
            if (matrix->gradient < 0) continue;
            for (const Piece *p = job->pieces + matrix->first_piece; p < job->pieces + matrix->first_piece + matrix->num_pieces; p++) {
                if (p->tensor < 0 || !m->part[p->tensor]) continue;
                REAL *to = m->part[p->tensor] + p->offset;
                const REAL *from = m->slice_gradient + matrix->gradient + p->first_row;
                for (int64_t r = 0; r < p->rows; r++)
                    for (int64_t k = 0; k < matrix->cols; k++)
                        to[r * p->row_stride + k * p->col_stride] += from[k * matrix->rows + r];
            }
        }
}

// The losses of one step on outputs (output, lane), added lane by lane; their tile becomes its gradient.
INLINE void cross_entropy_of(const int64_t classes, REAL *tile, int64_t heads, const int64_t *target, REAL weight,
                             int64_t lanes, REAL *loss) {
    for (int64_t h = 0; h < heads; h++, tile += classes * LANES) {
        REAL wanted[LANES] __attribute__((aligned(VECTOR_BYTES)));
        for (int64_t l = 0; l < lanes; l++) wanted[l] = (REAL)(int32_t)target[l * heads + h];
        for (int64_t l = lanes; l < LANES; l++) wanted[l] = -1;
        V want[PER_ROW], count[PER_ROW], top[PER_ROW], sum[PER_ROW], right[PER_ROW];
        EACH_VECTOR {
            // Where there is no right answer, nothing counts.
            want[v] = load(wanted + v * WIDTH);
            count[v] = pick(want[v] < (V){0}, (V){0}, splat(weight));
            top[v] = load(tile + v * WIDTH);
            sum[v] = right[v] = (V){0};
        }
        for (int64_t k = 1; k < classes; k++)
            EACH_VECTOR top[v] = larger(load(tile + k * LANES + v * WIDTH), top[v]);
        for (int64_t k = 0; k < classes; k++)
            EACH_VECTOR {
                V x = load(tile + k * LANES + v * WIDTH) - top[v], e = v_exp_of_negative(x);
                right[v] = pick(want[v] == splat((REAL)k), x, right[v]);
                sum[v] += e;
                store(tile + k * LANES + v * WIDTH, e);
            }
        EACH_VECTOR {
            V scale = count[v] / sum[v], own = (v_log_of_sum(sum[v]) - right[v]) * count[v];
            store(loss + v * WIDTH, load(loss + v * WIDTH) + pick(count[v] == (V){0}, (V){0}, own));
            sum[v] = scale;
        }
        for (int64_t k = 0; k < classes; k++)
            EACH_VECTOR {
                V g = load(tile + k * LANES + v * WIDTH) * sum[v] - pick(want[v] == splat((REAL)k), count[v], (V){0});
                store(tile + k * LANES + v * WIDTH, pick(count[v] == (V){0}, (V){0}, g));
            }
    }
}

static void cross_entropy(REAL *tile, int64_t heads, int64_t classes, const int64_t *target, REAL weight, int64_t lanes,
                          REAL *loss) {
    cross_entropy_of(classes, tile, heads, target, weight, lanes, loss);
}

static void squared_error(REAL *tile, int64_t size, const REAL *target, REAL weight, int64_t lanes, REAL *loss) {
    REAL each = weight / (REAL)size;
    for (int64_t r = 0; r < size; r++)
        for (int64_t l = 0; l < LANES; l++) {
            REAL error = l < lanes ? tile[r * LANES + l] - target[l * size + r] : 0;
            loss[l] += error * error * each;
            tile[r * LANES + l] = 2 * error * each;
        }
}

// Inputs of later steps are asked for this many steps before their own: their memory is read once, in jumps that the
// processor does not foresee.
enum { STEPS_AHEAD = 3 };

// The inputs of step t as tiles.
static void take_inputs(const Job *job, Memory *m, int64_t model, int64_t t, int64_t first, int64_t lanes) {
    for (int64_t i = 0; i < job->num_inputs; i++) {
        int64_t size = job->input_size[i], step = job->batch * size;
        const REAL *from = job->input[i] + model * job->input_stride[i] + first * size + t * step;
        for (int64_t k = 0; t + STEPS_AHEAD < job->time && k < lanes * size; k += 64 / sizeof(REAL))
            __builtin_prefetch(from + STEPS_AHEAD * step + k);
        to_full_tile(m->inputs + (t * job->input_rows + job->input_at[i]) * LANES, from, size, lanes);
    }
}

static void start(const Job *job, Memory *m, int64_t model, int64_t first, int64_t lanes) {
    for (int64_t s = 0; s < job->num_states; s++)
        to_full_tile(m->record + job->state_at[s] * LANES,
                job->initial[s] + model * job->initial_stride[s] + first * job->state_rows[s], job->state_rows[s], lanes);
}

// The answers of one shown step, judged; steps that count for nothing are not even read out.
static void judge_step(const Job *job, Memory *m, int64_t model, int64_t shown, int64_t first, int64_t lanes,
                       Verdict *verdict) {
    REAL weight = m->weight[shown];
    if (weight == 0) return;
    int64_t heads = job->output_rows / job->classes, place = (model * job->scored + shown) * job->batch + first;
    run(job, m, job->readout, job->num_readout);
    judge(at(m, job->output_at), heads, job->classes, job->target_class + place * heads, weight, lanes, verdict);
}

static void forward(const Job *job, Memory *m, int64_t model, int64_t first, int64_t lanes) {
    Verdict verdict = {0};
    for (int64_t t = 0; t < job->time; t++) {
        int64_t shown = t - job->time + job->shown_steps, place = (model * job->shown_steps + shown) * job->batch + first;
        at_step(m, job, t);
        take_inputs(job, m, model, t, first, lanes);
        run(job, m, job->step, job->num_step);
        if (shown < 0) continue;
        for (int64_t s = 0; job->states && s < job->num_states; s++)
            from_tile(job->states[s] + place * job->state_rows[s], m->base[RECORD] + job->state_at[s] * LANES,
                      job->state_rows[s], lanes);
        if (job->outputs) {
            run(job, m, job->readout, job->num_readout);
            from_tile(job->outputs + place * job->output_rows, at(m, job->output_at), job->output_rows, lanes);
        }
        if (job->verdicts) judge_step(job, m, model, shown, first, lanes, &verdict);
    }
    if (job->verdicts) pronounce(&verdict, job->verdicts + 4 * model);
}

// Weight of one sequence at step t in the loss.
INLINE REAL weight_of(const Job *job, const Memory *m, int64_t t) {
    int64_t scored = t - (job->time - job->scored);
    return job->loss_kind == GIVEN ? job->output_gradient != 0 : scored < 0 ? 0 : m->weight[scored];
}

// The gradient of the loss with respect to the outputs at step t, in its place; false where it is nothing.
static int output_gradient(const Job *job, Memory *m, int64_t model, int64_t t, int64_t first, int64_t lanes, REAL *loss) {
    int64_t scored = t - (job->time - job->scored), rows = job->output_rows;
    REAL weight = weight_of(job, m, t);
    if (weight == 0) {
        // What the read-out would have left for the gradients of weights is nothing, not what an earlier step left.
        memset(m->base[RING] + job->carried_in_ring * LANES, 0,
               (job->ring_rows - job->carried_in_ring) * LANES * sizeof(REAL));
        return 0;
    }
    run(job, m, job->readout, job->num_readout);
    REAL *tile = at(m, job->output_gradient_at);
    if (job->loss_kind == GIVEN) {
        to_tile(tile, job->output_gradient + ((model * job->time + t) * job->batch + first) * rows, rows, lanes);
        return 1;
    }
    memcpy(tile, at(m, job->output_at), rows * LANES * sizeof(REAL));
    int64_t place = (model * job->scored + scored) * job->batch + first;
    if (job->loss_kind == CROSS_ENTROPY) {
        int64_t heads = rows / job->classes;
        // Answers are read backward in time, which the processor does not foresee.
        for (int64_t i = 0; scored > 0 && i < lanes * heads; i += 8)
            __builtin_prefetch(job->target_class + (place - job->batch) * heads + i);
        cross_entropy(tile, heads, job->classes, job->target_class + place * heads, weight, lanes, loss);
    } else {
        squared_error(tile, rows, job->target_value + place * rows, weight, lanes, loss);
    }
    return 1;
}

// From a row of a space to the same row of the next step.
INLINE int64_t step_stride(const Job *job, int64_t space) {
    return LANES * (space == RING ? job->ring_rows : space == INPUT ? job->input_rows : job->record_rows);
}

static void weight_jobs(const Job *job, Memory *m, int64_t first, int64_t steps) {
    // Steps of one ring are neighbours in every space, the first at the lowest address.
    at_step(m, job, first);
    const WeightJob *end = job->jobs + job->num_jobs;
    for (const WeightJob *from = job->jobs, *to = from; from < end; from = to) {
        // Jobs that read the same rows of dy are done together, so that a few rows stay in the nearest cache.
        while (to < end && to->dy[0] == from->dy[0] && to->dy[1] == from->dy[1]) to++;
        int64_t loud = job->time - from->silent_steps - first, its_steps = steps < loud ? steps : loud;
        if (its_steps <= 0) continue;
        int64_t rows = from->matrix < 0 ? job->vectors[-1 - from->matrix].rows : job->matrices[from->matrix].rows;
        int64_t dy_stride = step_stride(job, from->dy[0]);
        for (int64_t r = 0; r < rows; r += G_ROWS) {
            int64_t count = rows - r < G_ROWS ? rows - r : G_ROWS;
            const REAL *dy = at(m, from->dy) + r * LANES;
            for (const WeightJob *j = from; j < to; j++) {
                if (j->matrix < 0) {
                    REAL *gradient = m->slice_gradient + job->vectors[-1 - j->matrix].gradient;
                    bias_gradient(count, its_steps, dy, dy_stride, gradient + r);
                    continue;
                }
                const Matrix *matrix = job->matrices + j->matrix;
                weight_gradient(count, matrix->cols, its_steps, dy, dy_stride, at(m, j->x), step_stride(job, j->x[0]),
                                m->slice_gradient + matrix->gradient + r, rows);
            }
        }
    }
}

// Whether the read-out of the step before t takes over a part of what step t carries there. The places of the two steps
// in the ring must differ, and nothing else may be added between.
static int is_deferred(const Job *job, const Memory *m, int64_t t) {
    int is_steady = t > 0 && job->time - t >= job->num_last_back_at;
    return job->num_deferred_readout_back && is_steady && job->ring_steps > 1 && !job->state_gradient &&
           weight_of(job, m, t - 1) != 0;
}

// From the gradients of the states after step t to those before it.
static void step_back(const Job *job, Memory *m, int64_t t) {
    int64_t later = job->time - 1 - t;
    if (is_deferred(job, m, t)) {
        run(job, m, job->deferring_step_back, job->num_deferring_step_back);
    } else if (later + 1 < job->num_last_back_at) {
        int64_t from = job->last_back_at[later];
        run(job, m, job->last_back + from, job->last_back_at[later + 1] - from);
    } else if (t) {
        run(job, m, job->step_back, job->num_step_back);
    } else {
        run(job, m, job->first_back, job->num_first_back);
    }
}

static double backward(const Job *job, Memory *m, int64_t model, int64_t first, int64_t lanes) {
    REAL loss[LANES] __attribute__((aligned(VECTOR_BYTES))) = {0};
    memset(m->slice_gradient, 0, job->gradient_size * sizeof(REAL));
    memset(m->carry, 0, 2 * job->carry_rows * LANES * sizeof(REAL));
    memset(m->base[SUMS], 0, job->sums_rows * LANES * sizeof(REAL));
    at_step(m, job, job->time - 1);
    memset(m->base[RING], 0, job->carried_in_ring * LANES * sizeof(REAL));
    for (int64_t t = job->time - 1; t >= 0; t--) {
        at_step(m, job, t);
        m->soon[0] = soon(m->base[PREVIOUS], job->record_rows);
        m->soon[1] = soon(m->ring + (ring_place(job, t + job->ring_steps - 1) + 1) * job->ring_rows * LANES, job->ring_rows);
        for (int64_t s = 0; job->state_gradient && s < job->num_states; s++)
            if (job->state_gradient[s])
                add_to_tile(at(m, job->carry_at[s]),
                            job->state_gradient[s] + ((model * job->time + t) * job->batch + first) * job->state_rows[s],
                            job->state_rows[s], lanes);
        if (output_gradient(job, m, model, t, first, lanes, loss)) {
            if (t + 1 < job->time && is_deferred(job, m, t + 1))
                run(job, m, job->deferred_readout_back, job->num_deferred_readout_back);
            else
                run(job, m, job->readout_back, job->num_readout_back);
        }
        if (!job->want_gradients) continue;
        step_back(job, m, t);
        if (job->input_gradient)
            for (int64_t i = 0; i < job->num_inputs; i++)
                if (job->input_gradient[i])
                    from_tile(job->input_gradient[i] + ((model * job->time + t) * job->batch + first) * job->input_size[i],
                              m->base[INPUT_GRADIENT] + job->input_at[i] * LANES, job->input_size[i], lanes);
        if (ring_place(job, t) == 0) {
            int64_t steps = job->time - t < job->ring_steps ? job->time - t : job->ring_steps;
            weight_jobs(job, m, t, steps);
            // The step before this ring is the last one of the ring before it.
            memcpy(m->ring + job->ring_steps * job->ring_rows * LANES, m->ring,
                   job->carried_in_ring * LANES * sizeof(REAL));
        }
    }
    at_step(m, job, 0);
    for (int64_t s = 0; job->initial_gradient && s < job->num_states; s++)
        if (job->initial_gradient[s])
            from_tile(job->initial_gradient[s] + (model * job->batch + first) * job->state_rows[s],
                      at(m, job->next_carry_at[s]), job->state_rows[s], lanes);
    double sum = 0;
    for (int64_t l = 0; l < LANES; l++) sum += (double)loss[l];
    return sum;
}

INLINE REAL *carve(REAL **from, int64_t count) {
    REAL *piece = *from;
    *from += (count + 63) / 64 * 64;
    return piece;
}

// Numbers of the gradients of a model, side by side, if they are to lie so.
INLINE int64_t row_size(const Job *job) {
    int64_t size = 0;
    for (int64_t i = 0; job->move && i < job->tensors; i++) size += job->gradient_stride[i];
    return size;
}

static Memory carved(const Job *job, REAL *workspace) {
    Memory m = {0};
    m.record = carve(&workspace, (job->want_gradients ? job->time + 1 : 2) * job->record_rows * LANES);
    m.inputs = carve(&workspace, job->time * job->input_rows * LANES);
    m.ring = carve(&workspace, (job->ring_steps + 1) * job->ring_rows * LANES);
    m.carry = carve(&workspace, 2 * job->carry_rows * LANES);
    m.packed = carve(&workspace, job->packed_size);
    m.slice_gradient = carve(&workspace, job->gradient_size);
    m.source = (const REAL **)carve(&workspace, job->tensors * sizeof(REAL *) / sizeof(REAL));
    m.gradient = (REAL **)carve(&workspace, job->tensors * sizeof(REAL *) / sizeof(REAL));
    m.part = (REAL **)carve(&workspace, job->tensors * sizeof(REAL *) / sizeof(REAL));
    m.row = carve(&workspace, row_size(job));
    m.room = carve(&workspace, job->move_room);
    m.base[SCRATCH] = carve(&workspace, job->scratch_rows * LANES);
    m.base[INPUT_GRADIENT] = carve(&workspace, job->input_rows * LANES);
    m.base[VECTORS] = carve(&workspace, job->vector_size);
    m.base[PARAMS] = carve(&workspace, job->params_rows * LANES);
    m.base[SUMS] = carve(&workspace, job->sums_rows * LANES);
    return m;
}

// Numbers of REAL that a workspace holds; it starts at a multiple of 64 bytes.
int64_t workspace_size(const Job *job) {
    REAL *start = (REAL *)(intptr_t)4096;
    Memory m = carved(job, start);
    return m.base[SUMS] - start + job->sums_rows * LANES + 64;
}

static void sum_up_vectors(const Job *job, const Memory *m) {
    for (const Matrix *v = job->vectors; v < job->vectors + job->num_vectors; v++)
        for (int64_t r = 0; v->sums >= 0 && r < v->rows; r++) {
            V sum = {0};
            for (int64_t i = 0; i < LANES; i += WIDTH) sum += load(m->base[SUMS] + (v->sums + r) * LANES + i);
            m->slice_gradient[v->gradient + r] += total(sum);
        }
}

// The loss of a model on the sequences of one update.
static double run_model(const Job *job, Memory *m, int64_t model, int64_t update, int64_t low, int64_t high) {
    double loss = 0;
    m->weight = job->weight + (update * job->models + model) * job->scored;
    pack_model(job, m, model);
    if (job->gradient_stride) zero_gradients(job, m, model);
    for (int64_t sequence = low; sequence < high; sequence += LANES) {
        int64_t lanes = high - sequence < LANES ? high - sequence : LANES;
        start(job, m, model, sequence, lanes);
        forward(job, m, model, sequence, lanes);
        if (!job->want_gradients) continue;
        loss += backward(job, m, model, sequence, lanes);
        sum_up_vectors(job, m);
        zero_parts(job, m);
        add_gradients(job, m);
        add_parts(job, m);
    }
    return loss;
}

static void move_model(const Job *job, Memory *m, int64_t model, int64_t low, int64_t high) {
    int64_t going = job->learning[model], count = high - low;
    for (int64_t u = 0; going && u < job->updates; u++, low += count) {
        job->losses[model] = run_model(job, m, model, u, low, low + count);
        going = job->move(job->how, model, u, job->losses[model], m->row, m->room);
    }
}

// Of every model that no other thread has taken from `next` first, the sequences from `low` to before `high`.
void run_models(const Job *job, int64_t *next, int64_t low, int64_t high, REAL *workspace) {
    Memory m = carved(job, workspace);
    int64_t model;
    while ((model = __atomic_fetch_add(next, 1, __ATOMIC_RELAXED)) < job->models) {
        if (job->move) {
            move_model(job, &m, model, low, high);
            continue;
        }
        double loss = run_model(job, &m, model, 0, low, high);
        if (job->losses) job->losses[model] = loss;
    }
}

// What Python must agree on.
void constants(int64_t out[8]) {
    out[0] = LANES, out[1] = NUM_SPACES, out[2] = LOAD + 1, out[3] = MAX_TERMS, out[4] = MAX_ADDENDS;
    out[5] = MAX_PAIRS, out[6] = sizeof(Job), out[7] = VECTOR_BYTES;
}
