// Matrix products that stay in registers: of numbers, and of fields of channels, channel by channel.
#pragma once
#include "vector.h"

// What a comparison of two vectors says, a bit for each lane, and the lanes of a vector where a bit is 1, others 0.
typedef uint16_t Bits;
#if defined(__AVX512F__)
INLINE Bits above(V a, V b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_GT_OQ); }
INLINE Bits equal(V a, V b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_EQ_OQ); }
INLINE V where(Bits bits, V a) { return (V)_mm512_maskz_mov_ps(bits, (__m512)a); }
INLINE V maximum(V a, V b) { return (V)_mm512_max_ps((__m512)a, (__m512)b); }
#else
INLINE Bits packed_bits(M mask) {
    Bits bits = 0;
    for (int i = 0; i < WIDTH; i++) bits |= (Bits)(mask[i] & 1) << i;
    return bits;
}
INLINE Bits above(V a, V b) { return packed_bits(a > b); }
INLINE Bits equal(V a, V b) { return packed_bits(a == b); }
INLINE V where(Bits bits, V a) {
    for (int i = 0; i < WIDTH; i++) a[i] = bits >> i & 1 ? a[i] : 0;
    return a;
}
INLINE V maximum(V a, V b) { return larger(a, b); }
#endif

// PRODUCT channels side by side fill a vector several times over, or are some vectors.
enum { SHARED = PRODUCT < WIDTH, SPAN = SHARED ? WIDTH : PRODUCT, DEEP = SHARED ? 1 : PRODUCT / WIDTH };

// The left factor: one number in every lane, or the channels of one edge, repeated.
INLINE V spread(const int by_channel, const REAL *at) {
    if (!by_channel) return splat(*at);
    if (!SHARED) return load(at);
#if defined(__AVX512F__)
    if (PRODUCT == 8) return (V)_mm512_broadcast_f64x4(_mm256_loadu_pd((const double *)at));
#endif
    V all;
    for (int i = 0; i < WIDTH; i++) all[i] = at[i % PRODUCT];
    return all;
}

// out[i, :] (+)= sum over k of left[i, k] right[k, :]: strides of rows and of terms, vectors of a row `apart`.
typedef struct {
    const REAL *left;
    int64_t left_row, left_term;
    const REAL *right;
    int64_t right_row;
    REAL *out;
    int64_t out_row;
    int64_t rows, terms, vectors;
    int add;
} Product;

INLINE void tile(const int by_channel, const int apart, const int rows, const int vectors, const Product *p, int64_t row,
                 int64_t vector) {
    V sums[24];
    const REAL *left = p->left + row * p->left_row, *right = p->right + vector * apart;
    REAL *out = p->out + row * p->out_row + vector * apart;
    UNROLL(24) for (int i = 0; i < rows * vectors; i++) sums[i] = splat(0);
    for (int64_t k = 0; k < p->terms; k++) {
        V row_of_right[4];
        UNROLL(4) for (int v = 0; v < vectors; v++) row_of_right[v] = load(right + v * apart);
        UNROLL(24) for (int i = 0; i < rows; i++) {
            V factor = spread(by_channel, left + i * p->left_row);
            UNROLL(4) for (int v = 0; v < vectors; v++) sums[i * vectors + v] += factor * row_of_right[v];
        }
        left += p->left_term;
        right += p->right_row;
    }
    // Added last: a total that grows over many calls would take the last bits of each of its terms.
    UNROLL(24) for (int i = 0; i < rows; i++)
        UNROLL(4) for (int v = 0; v < vectors; v++) {
            REAL *at = out + i * p->out_row + v * apart;
            V sum = sums[i * vectors + v];
            if (p->add) sum += load(at);
            store(at, sum);
        }
}

INLINE void tiles(const int by_channel, const int apart, const int rows, const Product *p, int64_t row, int64_t vector,
                  int64_t vectors) {
    enum { MOST = ACCUMULATORS >= 24 ? 4 : 2 };
    for (; MOST == 4 && vectors >= 4; vector += 4, vectors -= 4) tile(by_channel, apart, rows, 4, p, row, vector);
    if (MOST == 4 && vectors == 3) tile(by_channel, apart, rows, 3, p, row, vector), vectors = 0;
    for (; vectors >= 2; vector += 2, vectors -= 2) tile(by_channel, apart, rows, 2, p, row, vector);
    if (vectors) tile(by_channel, apart, rows, 1, p, row, vector);
}

// Panels of columns whose right factor stays in cache, then bands of rows.
INLINE void multiply_by(const int by_channel, const int apart, const Product *p) {
    enum { PANEL = 32, BAND = ACCUMULATORS / 4 };
    for (int64_t vector = 0; vector < p->vectors; vector += PANEL) {
        int64_t vectors = p->vectors - vector < PANEL ? p->vectors - vector : PANEL, row = 0;
        if (vectors == 3 && ACCUMULATORS >= 24)
            for (; row + 8 <= p->rows; row += 8) tile(by_channel, apart, 8, 3, p, row, vector);
        if (vectors == 1)
            for (; row + 12 <= p->rows; row += 12) tile(by_channel, apart, 12, 1, p, row, vector);
        for (; row + BAND <= p->rows; row += BAND) tiles(by_channel, apart, BAND, p, row, vector, vectors);
        for (; row + 2 <= p->rows; row += 2) tiles(by_channel, apart, 2, p, row, vector, vectors);
        for (; row < p->rows; row++) tiles(by_channel, apart, 1, p, row, vector, vectors);
    }
}

static __attribute__((noinline)) void multiply(Product p) {
    p.vectors /= WIDTH;
    multiply_by(0, WIDTH, &p);
}

// Fields of edges, product by product of channels: rows of left are [.., PRODUCT], those of right and out are packed.
static __attribute__((noinline)) void multiply_channels(Product p) {
    p.vectors /= SPAN;
    for (int c = 0; c < DEEP; c++) {
        multiply_by(1, SPAN, &p);
        p.left += WIDTH, p.right += WIDTH, p.out += WIDTH;
    }
}
