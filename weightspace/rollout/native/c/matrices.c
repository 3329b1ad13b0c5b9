// Singular values and spectral radii of many small matrices: as many side by side as a vector holds, one in each lane.
// No lane's arithmetic depends on its neighbours.
#include "masks.h"
#include "square.h"

enum { MAX_SWEEPS = 40, SQUARINGS = 46, ROW = WIDTH };
#define ORTHOGONAL 1e-14

INLINE V magnitude(V x) { return pick(x < (V){0}, -x, x); }

// Matrices (count, rows, cols) from `first` on as (col, row, lane), and what is beyond the last as zeros; each over its
// largest number, which is returned.
static V gather(int64_t count, int64_t rows, int64_t cols, const double *from, const int64_t stride[3], int64_t first, double *to) {
    V top = {0};
    for (int64_t c = 0; c < cols; c++)
        for (int64_t r = 0; r < rows; r++) {
            V x = {0};
            for (int64_t i = 0; i < WIDTH && first + i < count; i++)
                x[i] = from[(first + i) * stride[0] + r * stride[1] + c * stride[2]];
            store(to + (c * rows + r) * ROW, x);
            top = larger(magnitude(x), top);
        }
    V divisor = pick(top > (V){0}, top, splat(1));
    for (int64_t i = 0; i < rows * cols * ROW; i += ROW) store(to + i, load(to + i) / divisor);
    return top;
}

INLINE V dot(int64_t rows, const double *a, const double *b) {
    V sum[4] = {{0}};
    int64_t r = 0;
    for (; r + 4 <= rows; r += 4)
        UNROLL(4)
        for (int i = 0; i < 4; i++) sum[i] += load(a + (r + i) * ROW) * load(b + (r + i) * ROW);
    for (; r < rows; r++) sum[0] += load(a + r * ROW) * load(b + r * ROW);
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

// Turns two columns until they are orthogonal, where they are not; `squares` are their squared lengths.
INLINE int orthogonalise(int64_t rows, double *a, double *b, V *square_a, V *square_b) {
    V product = dot(rows, a, b), zero = {0};
    M turns = product * product > (ORTHOGONAL * ORTHOGONAL) * (*square_a * *square_b);
    if (count_true(turns) == 0) return 0;
    V half = (*square_b - *square_a) / (2 * product);
    V tangent = 1 / (magnitude(half) + v_sqrt(1 + half * half));
    tangent = pick(turns, pick(half < zero, -tangent, tangent), zero);
    V cosine = 1 / v_sqrt(1 + tangent * tangent), sine = cosine * tangent;
    for (int64_t r = 0; r < rows * ROW; r += ROW) {
        V x = load(a + r), y = load(b + r);
        store(a + r, cosine * x - sine * y);
        store(b + r, sine * x + cosine * y);
    }
    *square_a -= tangent * pick(turns, product, zero);
    *square_b += tangent * pick(turns, product, zero);
    return 1;
}

// Numbers that the workspace of either function holds; it starts at a multiple of 64 bytes.
int64_t matrices_workspace(int64_t rows, int64_t cols) { return (2 * rows * cols + cols) * ROW; }

// Singular values (count, cols), in no order, of matrices (count, rows, cols), rows >= cols, by turning pairs of columns
// until all are orthogonal: Hestenes, Journal of the SIAM 1958; Demmel and Veselic, SIAM J. Matrix Anal. Appl. 1992.
void singular_values(int64_t count, int64_t rows, int64_t cols, const double *from, const int64_t stride[3], double *out,
                     double *workspace) {
    double *square = workspace + rows * cols * ROW;
    for (int64_t first = 0; first < count; first += WIDTH) {
        V top = gather(count, rows, cols, from, stride, first, workspace);
        int turned = 1;
        for (int sweep = 0; turned && sweep < MAX_SWEEPS; sweep++) {
            turned = 0;
            for (int64_t c = 0; c < cols; c++) {
                const double *own = workspace + c * rows * ROW;
                store(square + c * ROW, dot(rows, own, own));
            }
            for (int64_t p = 0; p < cols; p++)
                for (int64_t q = p + 1; q < cols; q++)
                    turned |= orthogonalise(rows, workspace + p * rows * ROW, workspace + q * rows * ROW,
                                            (V *)(square + p * ROW), (V *)(square + q * ROW));
        }
        for (int64_t c = 0; c < cols; c++) {
            const double *own = workspace + c * rows * ROW;
            V length = v_sqrt(dot(rows, own, own)) * top;
            for (int64_t i = 0; i < WIDTH && first + i < count; i++) out[(first + i) * cols + c] = length[i];
        }
    }
}

// The largest absolute eigenvalue (count) of matrices (count, n, n) as the limit of ||A^k||^(1/k), k = 2^SQUARINGS:
// Gelfand, Matematicheskii Sbornik 1941. With ||A^k|| between 1/C and C times radius^k it is off by a share of log C / k.
void spectral_radii(int64_t count, int64_t n, const double *from, const int64_t stride[3], double *out, double *workspace) {
    for (int64_t first = 0; first < count; first += WIDTH) {
        double *now = workspace, *next = workspace + n * n * ROW, share = 1;
        V top = gather(count, n, n, from, stride, first, now), logs = {0}, vanished = {0};
        for (int squaring = 0; squaring <= SQUARINGS; squaring++, share /= 2) {
            if (squaring) {
                multiply(ROW, n, now, now, next);
                double *last = now;
                now = next, next = last;
            }
            V length = v_sqrt(dot(n * n, now, now));
            M gone = length == (V){0};
            vanished = pick(gone, splat(1), vanished);
            length = pick(gone, splat(1), length);
            logs += share * v_log_of_sum(length);
            for (int64_t i = 0; i < n * n * ROW; i += ROW) store(now + i, load(now + i) / length);
        }
        V radius = pick(vanished > (V){0}, (V){0}, v_exp(logs) * top);
        for (int64_t i = 0; i < WIDTH && first + i < count; i++) out[first + i] = radius[i];
    }
}
