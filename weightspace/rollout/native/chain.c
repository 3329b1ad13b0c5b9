// Norms of products of Jacobians along trajectories, one trajectory after another, each in the nearest cache.
#include "vector.h"

enum { BLOCK_ROWS = 4 };

// out (rows, stride) = a (rows, n) times b (n, stride), for BLOCK_ROWS rows and COLS vectors.
INLINE void block(const int COLS, int64_t n, int64_t stride, const REAL *a, const REAL *b, REAL *out) {
    V sum[BLOCK_ROWS][2];
    for (int r = 0; r < BLOCK_ROWS; r++)
        for (int c = 0; c < COLS; c++) sum[r][c] = (V){0};
    for (int64_t k = 0; k < n; k++, b += stride)
#pragma GCC unroll 2
        for (int c = 0; c < COLS; c++) {
            V x = load(b + c * WIDTH);
#pragma GCC unroll 4
            for (int r = 0; r < BLOCK_ROWS; r++) sum[r][c] += a[r * stride + k] * x;
        }
    for (int r = 0; r < BLOCK_ROWS; r++)
        for (int c = 0; c < COLS; c++) store(out + r * stride + c * WIDTH, sum[r][c]);
}

// Matrices are (rows, stride): n of each padded with zeros, rows to BLOCK_ROWS, columns to WIDTH.
static void multiply(int64_t n, int64_t rows, int64_t stride, const REAL *a, const REAL *b, REAL *out) {
    for (int64_t r = 0; r < rows; r += BLOCK_ROWS) {
        int64_t c = 0;
        for (; c + 2 * WIDTH <= stride; c += 2 * WIDTH) block(2, n, stride, a + r * stride, b + c, out + r * stride + c);
        if (c < stride) block(1, n, stride, a + r * stride, b + c, out + r * stride + c);
    }
}

static double log_norm(int64_t count, const REAL *matrix) {
    V sum = {0};
    for (int64_t i = 0; i < count; i += WIDTH) sum += load(matrix + i) * load(matrix + i);
    double total = 0;
    for (int i = 0; i < WIDTH; i++) total += sum[i];
    return log(sqrt(total));
}

static int64_t padded(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Numbers of REAL that the workspace of a chain holds; it starts at a multiple of 64 bytes.
int64_t chain_workspace(int64_t time, int64_t n) { return (time + 2) * padded(n, BLOCK_ROWS) * padded(n, WIDTH); }

// jacobians (models, time, lane, from, to) -> out (models, lag): the mean over lanes and starts t of
// log ||J(t+k-1) ... J(t)||_F for the lags k = 1 to max_lag.
void log_norms(int64_t models, int64_t time, int64_t lanes, int64_t n, int64_t max_lag, const REAL *jacobians,
               double *out, REAL *workspace) {
    int64_t rows = padded(n, BLOCK_ROWS), stride = padded(n, WIDTH), size = rows * stride;
    int64_t starts = time - max_lag + 1;
    REAL *product[2] = {workspace, workspace + size}, *own = workspace + 2 * size;
    memset(workspace, 0, chain_workspace(time, n) * sizeof(REAL));
    for (int64_t model = 0; model < models; model++, out += max_lag) {
        for (int64_t k = 0; k < max_lag; k++) out[k] = 0;
        for (int64_t lane = 0; lane < lanes; lane++) {
            for (int64_t t = 0; t < time; t++)
                for (int64_t r = 0; r < n; r++)
                    memcpy(own + t * size + r * stride,
                           jacobians + (((model * time + t) * lanes + lane) * n + r) * n, n * sizeof(REAL));
            for (int64_t start = 0; start < starts; start++) {
                // Transposed, the later Jacobian stands on the right.
                const REAL *last = own + start * size;
                out[0] += log_norm(size, last);
                for (int64_t k = 1; k < max_lag; k++) {
                    multiply(n, rows, stride, last, own + (start + k) * size, product[k & 1]);
                    last = product[k & 1];
                    out[k] += log_norm(size, last);
                }
            }
        }
        for (int64_t k = 0; k < max_lag; k++) out[k] /= (double)(starts * lanes);
    }
}
