// Products of small square matrices whose elements are vectors: blocks of the result stay in registers.
#pragma once
#include "vector.h"

// One block of out = a b, in one vector of each element; the next element of a row is `stride` numbers away.
INLINE void block(const int ROWS, const int COLS, const int64_t stride, int64_t n, const REAL *a, const REAL *b, REAL *out) {
    V sum[4][4];
    UNROLL(4)
    for (int r = 0; r < ROWS; r++)
        UNROLL(4)
        for (int c = 0; c < COLS; c++) sum[r][c] = (V){0};
    for (int64_t k = 0; k < n; k++) {
        V y[4];
        UNROLL(4)
        for (int c = 0; c < COLS; c++) y[c] = load(b + (k * n + c) * stride);
        UNROLL(4)
        for (int r = 0; r < ROWS; r++) {
            V x = load(a + (r * n + k) * stride);
            UNROLL(4)
            for (int c = 0; c < COLS; c++) sum[r][c] += x * y[c];
        }
    }
    UNROLL(4)
    for (int r = 0; r < ROWS; r++)
        UNROLL(4)
        for (int c = 0; c < COLS; c++) store(out + (r * n + c) * stride, sum[r][c]);
}

#define SHAPE(r, c) case r * 5 + c: block(r, c, stride, n, a + i * n * stride, b + j * stride, out + (i * n + j) * stride); break;
#define SHAPES(r) SHAPE(r, 1) SHAPE(r, 2) SHAPE(r, 3) SHAPE(r, 4)

// out (n, n) = a (n, n) times b (n, n).
INLINE void multiply(const int64_t stride, int64_t n, const REAL *a, const REAL *b, REAL *out) {
    for (int64_t i = 0; i < n; i += 4)
        for (int64_t j = 0; j < n; j += 4) switch ((n - i < 4 ? n - i : 4) * 5 + (n - j < 4 ? n - j : 4)) {
            SHAPES(1) SHAPES(2) SHAPES(3) SHAPES(4)
        }
}
