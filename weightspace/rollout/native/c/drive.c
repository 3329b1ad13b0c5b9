// Driven trajectories of one model after another, measured while states and Jacobians lie in cache.
//
// The program is that of a cell with one tangent vector beside its states, whose read-out is the Jacobian of the step
// (see drive.py). Every lane is a trajectory.
#include "engine.c"
#include "square.h"

typedef struct {
    int64_t plain;               // instructions of a step without tangents, the first ones of a step
    int64_t warm_up, aligning;   // steps without tangents, and with tangents that are not measured
    int64_t window, jacobians;   // steps that are measured, and the first of them that have Jacobians
    int64_t size;                // numbers of the whole state
    REAL *visited;               // (models, window, lane, state) before each step, or null
    REAL *growth;                // (models, window, lane): log of how much a step stretched a unit tangent vector
    double *covariance;          // (models, state, state) of the visited states, up to a factor
    double *mean_jacobian;       // (models, from, to)
    double *log_norms;           // (models, jacobians): mean over lanes of log ||J(k-1) ... J(0)||_F for k = 1 ...
} Drive;

typedef struct { REAL *path, *sum, *mean, *product, *next, *gram; } Room;

// Numbers of what lies in a place for a Jacobian, or else for a tangent vector.
INLINE int64_t matrix_of(const Drive *drive) { return drive->jacobians ? drive->size * drive->size : drive->size; }

static Room rooms(const Drive *drive, REAL *from) {
    int64_t matrix = matrix_of(drive);
    Room room;
    room.path = carve(&from, drive->window * drive->size * LANES);
    room.sum = carve(&from, drive->size * LANES);
    room.mean = carve(&from, matrix * LANES);
    room.product = carve(&from, matrix * LANES);
    room.next = carve(&from, matrix * LANES);
    room.gram = carve(&from, drive->size * drive->size);
    return room;
}

// Numbers of REAL that the room of a drive holds; it starts at a multiple of 64 bytes.
int64_t drive_room(const Drive *drive) {
    return ((drive->window + 1) * drive->size + 3 * matrix_of(drive)) * LANES + drive->size * drive->size + 6 * 64;
}

#if REAL_IS_DOUBLE
#define SMALLEST_NORMAL 2.2250738585072014e-308
#define SAFE 1e200
#define ROOT 1e100
#else
#define SMALLEST_NORMAL 1.17549435e-38f
#define SAFE 1e24f
#define ROOT 1e10f
#endif

// The log of the length of a vector in one lane of rows, which is scaled to length 1; -inf for what has vanished.
static double lane_to_unit(REAL *rows, int64_t count) {
    REAL top = 0;
    double sum = 0;
    for (int64_t r = 0; r < count; r++) {
        REAL size = fabs(rows[r * LANES]);
        // NaN stays: it is not less or equal.
        if (!(size <= top)) top = size;
        if (top != top) return NAN;
    }
    if (top > SMALLEST_NORMAL)
        for (int64_t r = 0; r < count; r++) sum += (double)(rows[r * LANES] / top) * (double)(rows[r * LANES] / top);
    REAL length = (REAL)sqrt(sum);
    for (int64_t r = 0; r < count; r++) rows[r * LANES] = sum > 0 ? rows[r * LANES] / top / length : 0;
    return sum > 0 ? log(top) + 0.5 * log(sum) : sum != sum ? NAN : -INFINITY;
}

// The same for as many lanes as a vector holds. What squares cannot hold is done lane by lane.
static V to_unit(REAL *rows, int64_t count) {
    V sum[4] = {{0}}, squares, logs;
    int64_t r = 0;
    for (; r + 4 <= count; r += 4)
        UNROLL(4)
        for (int i = 0; i < 4; i++) sum[i] += load(rows + (r + i) * LANES) * load(rows + (r + i) * LANES);
    for (; r < count; r++) sum[0] += load(rows + r * LANES) * load(rows + r * LANES);
    squares = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    if (count_true((squares > splat(1 / SAFE)) & (squares < splat(SAFE))) < WIDTH) {
        for (int i = 0; i < WIDTH; i++) logs[i] = (REAL)lane_to_unit(rows + i, count);
        return logs;
    }
    V factor = 1 / v_sqrt(squares);
    for (r = 0; r < count; r++) store(rows + r * LANES, load(rows + r * LANES) * factor);
    return (REAL)0.5 * v_log_of_sum(squares);
}

// One more Jacobian (from, to, lane) for the mean and for the product, which stands on its left: J(k) ... J(0).
static void take_jacobian(const Drive *drive, Room *room, const REAL *jacobian, int64_t step, V *log_norm, double *out) {
    int64_t matrix = drive->size * drive->size;
    double sum = 0;
    for (int64_t i = 0; i < matrix * LANES; i += WIDTH)
        store(room->mean + i, (step ? load(room->mean + i) : (V){0}) + load(jacobian + i));
    if (step == 0) memcpy(room->next, jacobian, matrix * LANES * sizeof(REAL));
    for (int v = 0; v < PER_ROW; v++) {
        if (step) multiply(LANES, drive->size, room->product + v * WIDTH, jacobian + v * WIDTH, room->next + v * WIDTH);
        log_norm[v] += to_unit(room->next + v * WIDTH, matrix);
        for (int i = 0; i < WIDTH; i++) sum += log_norm[v][i];
    }
    REAL *last = room->product;
    room->product = room->next, room->next = last;
    *out = sum / LANES;
}

// Sums over all lanes of tiles (row, lane), divided.
static void mean_over_lanes(int64_t rows, const REAL *tile, double divisor, double *out) {
    REAL sums[32] __attribute__((aligned(VECTOR_BYTES)));
    for (int64_t first = 0; first < rows; first += 16) {
        int64_t count = rows - first < 16 ? rows - first : 16;
        V some[16];
        for (int64_t r = 0; r < 16; r++) {
            some[r] = (V){0};
            for (int v = 0; v < PER_ROW && r < count; v++) some[r] += load(tile + (first + r) * LANES + v * WIDTH);
        }
        totals(16, some, sums);
        for (int64_t r = 0; r < count; r++) out[first + r] = sums[r] / divisor;
    }
}

// Between these, squares of the largest of some numbers, and of what matters beside it, keep their digits.
#define WELL_SCALED(x) ((x) > 1 / ROOT && (x) < ROOT)

// The covariance of states (time, state, lane) up to a factor, about their sum (state, lane) over time, divided by the
// number of samples; they become their distance from the mean.
static void covariance(const Drive *drive, const Room *room, double *out) {
    int64_t n = drive->size, samples = drive->window * LANES, stride = n * LANES;
    V top[2] = {{0}};
    for (int64_t r = 0; r < n; r++) {
        V sum = {0};
        for (int64_t i = r * LANES; i < (r + 1) * LANES; i += WIDTH) sum += load(room->sum + i);
        V mean = splat(total(sum) / (REAL)samples);
        for (int64_t i = r * LANES; i < (r + 1) * LANES; i += WIDTH) store(room->sum + i, mean);
    }
    for (int64_t t = 0; t < drive->window; t++)
        for (int64_t i = 0; i < stride; i += WIDTH) {
            V away = load(room->path + t * stride + i) - load(room->sum + i);
            store(room->path + t * stride + i, away);
            top[0] = larger(away, top[0]), top[1] = larger(-away, top[1]);
        }
    REAL largest = 0;
    for (int i = 0; i < WIDTH; i++)
        for (int side = 0; side < 2; side++) largest = top[side][i] > largest ? top[side][i] : largest;
    if (largest > 0 && !WELL_SCALED(largest))
        for (int64_t i = 0; i < drive->window * stride; i += WIDTH)
            store(room->path + i, load(room->path + i) / largest);
    memset(room->gram, 0, n * n * sizeof(REAL));
    for (int64_t r = 0; r < n; r += G_ROWS) {
        int64_t rows = n - r < G_ROWS ? n - r : G_ROWS;
        // The other half is the same.
        weight_gradient(rows, r + rows, drive->window, room->path + r * LANES, stride, room->path, stride, room->gram + r, n);
    }
    for (int64_t r = 0; r < n; r++)
        for (int64_t c = 0; c <= r; c++) out[r * n + c] = out[c * n + r] = (double)room->gram[c * n + r] / (double)samples;
}

// The states before the step of this moment, all side by side, as rows of the path and in the sum over time.
static void visit(const Job *job, const Memory *m, int64_t step, REAL *sum, REAL *to) {
    for (int64_t s = 0; s < job->num_states / 2; s++) {
        const REAL *from = m->base[PREVIOUS] + job->state_at[s] * LANES;
        int64_t count = job->state_rows[s] * LANES;
        for (int64_t i = 0; i < count; i += WIDTH) {
            V state = load(from + i);
            store(to + i, state);
            store(sum + i, (step ? load(sum + i) : (V){0}) + state);
        }
        to += count, sum += count;
    }
}

// Tangent vectors lie side by side over all states: gathered, if these are several, scaled to length 1, put back.
static void scale_tangents(const Job *job, const Memory *m, const Drive *drive, const Room *room, REAL *growth) {
    int64_t half = job->num_states / 2;
    REAL *rows = half == 1 ? m->base[RECORD] + job->state_at[1] * LANES : room->next, *to = rows;
    for (int64_t s = half; half > 1 && s < job->num_states; to += job->state_rows[s++] * LANES)
        memcpy(to, m->base[RECORD] + job->state_at[s] * LANES, job->state_rows[s] * LANES * sizeof(REAL));
    for (int v = 0; v < PER_ROW; v++) {
        V logs = to_unit(rows + v * WIDTH, drive->size);
        if (growth) memcpy(growth + v * WIDTH, &logs, sizeof(V));
    }
    to = rows;
    for (int64_t s = half; half > 1 && s < job->num_states; to += job->state_rows[s++] * LANES)
        memcpy(m->base[RECORD] + job->state_at[s] * LANES, to, job->state_rows[s] * LANES * sizeof(REAL));
}

static void drive_model(const Job *job, Memory *m, const Drive *drive, Room *room, int64_t model) {
    int64_t n = drive->size, measured = drive->warm_up + drive->aligning;
    V log_norm[PER_ROW] = {{0}};
    start(job, m, model, 0, LANES);
    for (int64_t t = 0; t < job->time; t++) {
        int64_t step = t - measured;
        at_step(m, job, t);
        take_inputs(job, m, model, t, 0, LANES);
        if (step >= 0) visit(job, m, step, room->sum, room->path + step * n * LANES);
        for (int64_t s = job->num_states / 2; t == drive->warm_up && s < job->num_states; s++)
            to_tile(m->base[PREVIOUS] + job->state_at[s] * LANES,
                    job->initial[s] + model * job->initial_stride[s], job->state_rows[s], LANES);
        run(job, m, job->step, t < drive->warm_up ? drive->plain : job->num_step);
        if (t < drive->warm_up) continue;
        scale_tangents(job, m, drive, room, step < 0 ? 0 : drive->growth + (model * drive->window + step) * LANES);
        if (step < 0 || step >= drive->jacobians) continue;
        run(job, m, job->readout, job->num_readout);
        take_jacobian(drive, room, at(m, job->output_at), step, log_norm,
                      drive->log_norms + model * drive->jacobians + step);
    }
}

// Every model that no other thread has taken from `next` first; room is as drive_room says.
void drive_models(const Job *job, const Drive *drive, int64_t *next, REAL *workspace, REAL *room_at) {
    Memory m = carved(job, workspace);
    Room room = rooms(drive, room_at);
    int64_t matrix = drive->size * drive->size, model;
    while ((model = __atomic_fetch_add(next, 1, __ATOMIC_RELAXED)) < job->models) {
        pack_model(job, &m, model);
        drive_model(job, &m, drive, &room, model);
        for (int64_t t = 0; drive->visited && t < drive->window; t++)
            from_tile(drive->visited + (model * drive->window + t) * LANES * drive->size,
                      room.path + t * drive->size * LANES, drive->size, LANES);
        if (drive->jacobians)
            mean_over_lanes(matrix, room.mean, (double)(LANES * drive->jacobians), drive->mean_jacobian + model * matrix);
        covariance(drive, &room, drive->covariance + model * matrix);
    }
}
