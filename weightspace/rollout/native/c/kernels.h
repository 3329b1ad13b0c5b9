// Products of weight matrices with tiles (row, lane), and the gradients of weights.
#pragma once
#include "vector.h"

typedef struct {
    const REAL *packed;  // weights in the order the kernel reads them
    const REAL *tile;    // (cols, lane)
    int64_t cols;
} Term;

// What a sum of products begins with: factor[row * stride] * tile (row, lane), a stride of 0 for one factor.
typedef struct {
    const REAL *tile, *factor;
    int64_t stride;
} Addend;

// Memory from `next` to `last` that is needed soon. It is fetched by and by while products keep the processor busy.
typedef struct {
    const REAL *next, *last;
} Soon;
INLINE Soon soon(const REAL *from, int64_t rows) { return (Soon){from, from + (rows * LANES - 64 / sizeof(REAL))}; }
INLINE void fetch_a_line(Soon *soon) {
    __builtin_prefetch(soon->next);
    soon->next = soon->next < soon->last ? soon->next + 64 / sizeof(REAL) : soon->last;
}

enum {
    MAX_TERMS = 12, MAX_ADDENDS = 4, MAX_PAIRS = 4,
    ROWS_AT_ONCE = ACCUMULATORS / PER_ROW < 1 ? 1 : ACCUMULATORS / PER_ROW
};

// How many rows the i-th of the panels of a matrix has: as equal as can be, never above ROWS_AT_ONCE.
INLINE int64_t num_panels(int64_t rows) { return (rows + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE; }
INLINE int64_t panel_rows(int64_t rows, int64_t panel) {
    int64_t panels = num_panels(rows);
    return rows / panels + (panel < rows % panels);
}

typedef struct {
    int64_t rows;
    int num_terms, num_addends;
    const Term *term;
    const Addend *addend;
    const REAL *bias;  // or null
    REAL *out;
} Sum;

// Rows from `first` on: out = bias + addends + sum of weight (ROWS, cols) times tile (cols, lane).
INLINE void panel_product(const int ROWS, const Sum *s, int64_t first, const int64_t *done, Soon *wanted) {
    // Copies, because the compiler must expect that a store changes what `s` points at.
    const Addend *addend = s->addend, *last_addend = addend + s->num_addends;
    const Term *term = s->term, *last_term = term + s->num_terms;
    const REAL *bias = s->bias ? s->bias + first : 0;
    REAL *out = s->out + first * LANES;
    Soon one = wanted[0], other = wanted[1];
    V sum[ROWS_AT_ONCE][PER_ROW];
    UNROLL(32)
    for (int r = 0; r < ROWS; r++)
        EACH_VECTOR sum[r][v] = bias ? splat(bias[r]) : (V){0};
    for (const Addend *a = addend; a < last_addend; a++) {
        const REAL *tile = in_one_register(a->tile + first * LANES), *factor = a->factor + first * a->stride;
        UNROLL(32)
        for (int r = 0; r < ROWS; r++, factor += a->stride)
            EACH_VECTOR sum[r][v] += *factor * load(tile + r * LANES + v * WIDTH);
    }
    for (const Term *in = term; in < last_term; in++, done++) {
        const REAL *weight = in->packed + *done, *tile = in->tile, *end = tile + in->cols * LANES;
        for (; tile < end; weight += ROWS, tile += LANES) {
            fetch_a_line(&one);
            fetch_a_line(&other);
            V x[PER_ROW];
            EACH_VECTOR x[v] = load(tile + v * WIDTH);
            UNROLL(32)
            for (int r = 0; r < ROWS; r++)
                EACH_VECTOR sum[r][v] += weight[r] * x[v];
        }
    }
    UNROLL(32)
    for (int r = 0; r < ROWS; r++)
        EACH_VECTOR store(out + r * LANES + v * WIDTH, sum[r][v]);
    wanted[0] = one, wanted[1] = other;
}

#define PANEL(n) \
    case n:      \
        if (n <= ROWS_AT_ONCE) panel_product(n <= ROWS_AT_ONCE ? n : 1, s, first, done, wanted); \
        break;

// A sum of COUNT addends without products: one pass, row after row.
INLINE void combine(const int COUNT, const Sum *s) {
    // Copies, because the compiler must expect that a store changes what `s` points at.
    Addend a[MAX_ADDENDS];
    const REAL *bias = s->bias;
    REAL *out = s->out;
    const int64_t rows = s->rows;
    UNROLL(4)
    for (int i = 0; i < COUNT; i++) a[i] = s->addend[i];
    for (int64_t r = 0; r < rows; r++) {
        V start = bias ? splat(bias[r]) : (V){0}, by[MAX_ADDENDS];
        UNROLL(4)
        for (int i = 0; i < COUNT; i++) by[i] = splat(a[i].factor[r * a[i].stride]);
        UNROLL(8)
        for (int v = 0; v < PER_ROW; v++) {
            V sum = start;
            UNROLL(4)
            for (int i = 0; i < COUNT; i++) sum += by[i] * load(a[i].tile + r * LANES + v * WIDTH);
            store(out + r * LANES + v * WIDTH, sum);
        }
    }
}

static void product(const Sum *s, Soon *wanted) {
    if (s->num_terms == 0) {
        switch (s->num_addends) {
            case 0: combine(0, s); return;
            case 1: combine(1, s); return;
            case 2: combine(2, s); return;
            case 3: combine(3, s); return;
            case 4: combine(4, s); return;
        }
    }
    int64_t done[MAX_TERMS] = {0}, panels = num_panels(s->rows), first = 0;
    for (int64_t panel = 0; panel < panels; panel++) {
        int64_t count = panel_rows(s->rows, panel);
        switch (count) {
            PANEL(1) PANEL(2) PANEL(3) PANEL(4) PANEL(5) PANEL(6) PANEL(7) PANEL(8) PANEL(9) PANEL(10) PANEL(11)
            PANEL(12) PANEL(13) PANEL(14) PANEL(15) PANEL(16) PANEL(17) PANEL(18) PANEL(19) PANEL(20) PANEL(21)
            PANEL(22) PANEL(23) PANEL(24)
        }
        for (int i = 0; i < s->num_terms; i++) done[i] += count * s->term[i].cols;
        first += count;
    }
}

// One of the products of two tiles that are added to another, in the order in which they stand.
typedef struct {
    const REAL *a, *b;
    REAL scale;
} Pair;

// sum + scale a b, where SIGN is the scale if that is 1 or -1, and else 0.
INLINE V with_product(const int SIGN, V sum, V a, REAL scale, V b) {
    return SIGN == 1 ? sum + a * b : SIGN == -1 ? sum - a * b : sum + a * scale * b;
}

// out += the sum of COUNT products scale * a * b, element by element, in one pass; all of the scale SIGN unless that is 0.
INLINE void add_products(const int COUNT, const int SIGN, int64_t n, REAL *out, const Pair *pairs) {
    Pair p[MAX_PAIRS];
    UNROLL(4)
    for (int i = 0; i < COUNT; i++) p[i] = pairs[i];
    for (int64_t at = 0; at < n; at += WIDTH) {
        V sum = load(out + at);
        UNROLL(4)
        for (int i = 0; i < COUNT; i++)
            sum = with_product(SIGN, sum, load(p[i].a + at), p[i].scale, load(p[i].b + at));
        store(out + at, sum);
    }
}

// out += a b + c d and other += a d + SIGN c b in one pass; the pairs are (a, b), (c, d), (a, d), (c, b). Where SIGN is 0
// each product has a scale.
INLINE void add_crossed(const int SIGN, int64_t n, REAL *out, REAL *other, const Pair *pairs) {
    const Pair p[4] = {pairs[0], pairs[1], pairs[2], pairs[3]};
    const int PLUS = SIGN ? 1 : 0;
    for (int64_t at = 0; at < n; at += WIDTH) {
        V a = load(p[0].a + at), b = load(p[0].b + at), c = load(p[1].a + at), d = load(p[1].b + at);
        V sum = with_product(PLUS, load(out + at), a, p[0].scale, b);
        V crossed = with_product(PLUS, load(other + at), a, p[2].scale, d);
        store(out + at, with_product(PLUS, sum, c, p[1].scale, d));
        store(other + at, with_product(SIGN, crossed, c, p[3].scale, b));
    }
}

typedef struct { int64_t first_row, rows, first_col, cols; } Block;

// A block of a matrix (rows, cols), which lies at `from` with two strides, in its place among all in panel order.
static void pack(REAL *to, int64_t rows, int64_t cols, Block block, const REAL *from, int64_t row_stride,
                 int64_t col_stride) {
    for (int64_t panel = 0, start = 0; panel < num_panels(rows); panel++) {
        int64_t count = panel_rows(rows, panel), end = block.first_row + block.rows;
        int64_t low = start > block.first_row ? start : block.first_row, high = start + count < end ? start + count : end;
        // The start of the block in this panel, if some of it is here.
        const REAL *own = low < high ? from + (low - block.first_row) * row_stride : from;
        REAL *place = low < high ? to + block.first_col * count + low - start : to;
        if (row_stride == 1)
            for (int64_t k = 0; k < block.cols; k++)
                for (int64_t r = 0; r < high - low; r++) place[k * count + r] = own[k * col_stride + r];
        else
            for (int64_t r = 0; r < high - low; r++)
                for (int64_t k = 0; k < block.cols; k++) place[k * count + r] = own[r * row_stride + k * col_stride];
        to += count * cols;
        start += count;
    }
}

// ---- gradients of weights: G (cols, rows) += sum over steps and lanes of x (col, lane) times dy (row, lane) ----

// Sums of G_ROWS times G_COLS products are kept in registers at once.
#if ACCUMULATORS >= 24
enum { G_ROWS = 8, G_COLS = 3 };
#else
enum { G_ROWS = 4, G_COLS = 2 };
#endif

INLINE REAL total(V v) {
    REAL sum[WIDTH];
    for (int i = 0; i < WIDTH; i++) sum[i] = v[i];
    for (int width = WIDTH / 2; width; width /= 2)
        for (int i = 0; i < width; i++) sum[i] += sum[i + width];
    return sum[0];
}

#if defined(__AVX512F__) && !REAL_IS_DOUBLE && defined(__GNUC__) && !defined(__clang__)
// Blocks of `width` numbers of a and of b, each added up to half a block: a's stands first, then b's.
INLINE V fold(V a, V b, const int width) {
    M stay, cross;
    for (int i = 0; i < WIDTH; i++) {
        int is_second = i / (width / 2) % 2;
        stay[i] = is_second ? i + WIDTH : i;
        cross[i] = is_second ? i - width / 2 + WIDTH : i + width / 2;
    }
    return __builtin_shuffle(a, b, stay) + __builtin_shuffle(a, b, cross);
}
// The totals of sixteen vectors, in order.
INLINE V totals_of_16(const V *sum) {
    V a[8], b[4], c[2];
    UNROLL(8)
    for (int i = 0; i < 8; i++) a[i] = fold(sum[i], sum[i + 8], 16);
    UNROLL(4)
    for (int i = 0; i < 4; i++) b[i] = fold(a[i], a[i + 4], 8);
    UNROLL(2)
    for (int i = 0; i < 2; i++) c[i] = fold(b[i], b[i + 2], 4);
    return fold(c[0], c[1], 2);
}
// The totals of eight vectors, in order, twice.
INLINE V totals_of_8(const V *sum) {
    V a[4], b[2];
    UNROLL(4)
    for (int i = 0; i < 4; i++) a[i] = fold(sum[i], sum[i + 4], 16);
    UNROLL(2)
    for (int i = 0; i < 2; i++) b[i] = fold(a[i], a[i + 2], 8);
    V c = fold(b[0], b[1], 4), d = fold(c, c, 2);
    M in_order;
    for (int i = 0; i < WIDTH; i++) in_order[i] = 2 * i % WIDTH;
    return __builtin_shuffle(d, in_order);
}
INLINE void totals(const int count, const V *sum, REAL *out) {
    V some[16];
    int done = count > 8 ? 16 : 0;
    if (done) {
        UNROLL(16)
        for (int i = 0; i < 16; i++) some[i] = i < count ? sum[i] : (V){0};
        store(out, totals_of_16(some));
    }
    if (count > done) {
        UNROLL(8)
        for (int i = 0; i < 8; i++) some[i] = done + i < count ? sum[done + i] : (V){0};
        store(out + done, totals_of_8(some));
    }
}
#else
INLINE void totals(const int count, const V *sum, REAL *out) {
    for (int i = 0; i < count; i++) out[i] = total(sum[i]);
}
#endif

INLINE void gradient_block(const int ROWS, const int COLS, int64_t steps, const REAL *dy, int64_t dy_stride,
                           const REAL *x, int64_t x_stride, REAL *gradient, int64_t stride) {
    V sum[G_ROWS * G_COLS];
    UNROLL(24)
    for (int i = 0; i < ROWS * COLS; i++) sum[i] = (V){0};
    for (int64_t t = 0; t < steps; t++, dy += dy_stride, x += x_stride)
        UNROLL(8)
        for (int v = 0; v < PER_ROW; v++) {
            V b[G_COLS];
            UNROLL(4)
            for (int c = 0; c < COLS; c++) b[c] = load(x + c * LANES + v * WIDTH);
            UNROLL(8)
            for (int r = 0; r < ROWS; r++) {
                V a = in_register(load(dy + r * LANES + v * WIDTH));
                UNROLL(4)
                for (int c = 0; c < COLS; c++) sum[c * ROWS + r] += a * b[c];
            }
        }
    REAL out[32] __attribute__((aligned(VECTOR_BYTES)));
    totals(ROWS * COLS, sum, out);
    UNROLL(4)
    for (int c = 0; c < COLS; c++)
        UNROLL(8)
        for (int r = 0; r < ROWS; r++) gradient[c * stride + r] += out[c * ROWS + r];
}

#define BLOCK(r, c)     \
    case r * 4 + c:     \
        if (r <= G_ROWS && c <= G_COLS) \
            gradient_block(r <= G_ROWS ? r : 1, c <= G_COLS ? c : 1, steps, dy, dy_stride, at, x_stride, g, stride); \
        break;
#define BLOCKS(r) BLOCK(r, 1) BLOCK(r, 2) BLOCK(r, 3)

// The gradient of up to G_ROWS rows of a matrix that has `stride` of them.
static void weight_gradient(int64_t rows, int64_t cols, int64_t steps, const REAL *dy, int64_t dy_stride, const REAL *x,
                            int64_t x_stride, REAL *gradient, int64_t stride) {
    for (int64_t c = 0; c < cols; c += G_COLS) {
        const REAL *at = x + c * LANES;
        REAL *g = gradient + c * stride;
        switch (rows * 4 + (cols - c < G_COLS ? cols - c : G_COLS)) {
            BLOCKS(1) BLOCKS(2) BLOCKS(3) BLOCKS(4) BLOCKS(5) BLOCKS(6) BLOCKS(7) BLOCKS(8)
        }
    }
}

INLINE void bias_block(const int ROWS, int64_t steps, const REAL *dy, int64_t dy_stride, REAL *gradient) {
    V sum[G_ROWS];
    REAL out[32] __attribute__((aligned(VECTOR_BYTES)));
    UNROLL(8)
    for (int r = 0; r < ROWS; r++) sum[r] = (V){0};
    for (int64_t t = 0; t < steps; t++, dy += dy_stride)
        UNROLL(8)
        for (int v = 0; v < PER_ROW; v++)
            UNROLL(8)
            for (int r = 0; r < ROWS; r++) sum[r] += load(dy + r * LANES + v * WIDTH);
    totals(ROWS, sum, out);
    for (int r = 0; r < ROWS; r++) gradient[r] += out[r];
}

// The gradient of up to G_ROWS rows of a bias: G (rows) += sum over steps and lanes of dy (row, lane).
static void bias_gradient(int64_t rows, int64_t steps, const REAL *dy, int64_t dy_stride, REAL *gradient) {
    if (rows == G_ROWS) bias_block(G_ROWS, steps, dy, dy_stride, gradient);
    else
        for (int64_t r = 0; r < rows; r++) bias_block(1, steps, dy + r * LANES, dy_stride, gradient + r);
}
