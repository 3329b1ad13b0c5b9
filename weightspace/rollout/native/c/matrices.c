// Singular values and spectral radii of many small matrices: as many side by side as a vector holds, one in each lane.
// No lane's arithmetic depends on its neighbours. `row` is from one element to the next of the same matrix, in numbers.
#include "masks.h"
#include "square.h"

enum { MAX_SWEEPS = 40, SQUARINGS = 46 };
#define ORTHOGONAL 1e-14

INLINE V magnitude(V x) { return pick(x < (V){0}, -x, x); }

// Matrices (count, rows, cols) from `first` on as (col, row, lane), and what is beyond the last as zeros; each over its
// largest number, which is returned.
static V gather(int64_t count, int64_t rows, int64_t cols, const double *from, const int64_t stride[3], int64_t first,
                const int64_t row, double *to) {
    V top = {0};
    for (int64_t c = 0; c < cols; c++)
        for (int64_t r = 0; r < rows; r++) {
            V x = {0};
            for (int64_t i = 0; i < WIDTH && first + i < count; i++)
                x[i] = from[(first + i) * stride[0] + r * stride[1] + c * stride[2]];
            store(to + (c * rows + r) * row, x);
            top = larger(magnitude(x), top);
        }
    V divisor = pick(top > (V){0}, top, splat(1));
    for (int64_t i = 0; i < rows * cols * row; i += row) store(to + i, load(to + i) / divisor);
    return top;
}

INLINE V dot(const int64_t row, int64_t rows, const double *a, const double *b) {
    V sum[4] = {{0}};
    int64_t r = 0;
    for (; r + 4 <= rows; r += 4)
        UNROLL(4)
        for (int i = 0; i < 4; i++) sum[i] += load(a + (r + i) * row) * load(b + (r + i) * row);
    for (; r < rows; r++) sum[0] += load(a + r * row) * load(b + r * row);
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

// Turns two columns until they are orthogonal, where they are not; `squares` are their squared lengths. Several vectors
// of matrices go together: each waits for one quotient or root after another, and they wait at the same time.
INLINE int orthogonalise(int64_t rows, double *a, double *b, V *square_a, V *square_b) {
    V product[PER_ROW], cosine[PER_ROW], sine[PER_ROW], zero = {0};
    M turns[PER_ROW];
    int turned = 0;
    EACH_VECTOR {
        product[v] = dot(LANES, rows, a + v * WIDTH, b + v * WIDTH);
        turns[v] = product[v] * product[v] > (ORTHOGONAL * ORTHOGONAL) * (square_a[v] * square_b[v]);
        turned += count_true(turns[v]);
    }
    if (turned == 0) return 0;
    EACH_VECTOR {
        V half = (square_b[v] - square_a[v]) / (2 * product[v]);
        V tangent = 1 / (magnitude(half) + v_sqrt(1 + half * half));
        tangent = pick(turns[v], pick(half < zero, -tangent, tangent), zero);
        cosine[v] = 1 / v_sqrt(1 + tangent * tangent), sine[v] = cosine[v] * tangent;
        square_a[v] -= tangent * pick(turns[v], product[v], zero);
        square_b[v] += tangent * pick(turns[v], product[v], zero);
    }
    for (int64_t r = 0; r < rows * LANES; r += LANES)
        EACH_VECTOR {
            V x = load(a + r + v * WIDTH), y = load(b + r + v * WIDTH);
            store(a + r + v * WIDTH, cosine[v] * x - sine[v] * y);
            store(b + r + v * WIDTH, sine[v] * x + cosine[v] * y);
        }
    return 1;
}

// Numbers that the workspace of either function holds; it starts at a multiple of 64 bytes.
int64_t matrices_workspace(int64_t rows, int64_t cols) { return (2 * rows * cols + cols) * LANES; }

// Singular values (count, cols), in no order, of matrices (count, rows, cols), rows >= cols, by turning pairs of columns
// until all are orthogonal: Hestenes, Journal of the SIAM 1958; Demmel and Veselic, SIAM J. Matrix Anal. Appl. 1992.
void singular_values(int64_t count, int64_t rows, int64_t cols, const double *from, const int64_t stride[3], double *out,
                     double *workspace) {
    double *square = workspace + rows * cols * LANES;
    for (int64_t first = 0; first < count; first += LANES) {
        V top[PER_ROW];
        EACH_VECTOR top[v] = gather(count, rows, cols, from, stride, first + v * WIDTH, LANES, workspace + v * WIDTH);
        int turned = 1;
        for (int sweep = 0; turned && sweep < MAX_SWEEPS; sweep++) {
            turned = 0;
            for (int64_t c = 0; c < cols; c++) {
                const double *column = workspace + c * rows * LANES;
                EACH_VECTOR store(square + c * LANES + v * WIDTH, dot(LANES, rows, column + v * WIDTH, column + v * WIDTH));
            }
            for (int64_t p = 0; p < cols; p++)
                for (int64_t q = p + 1; q < cols; q++)
                    turned |= orthogonalise(rows, workspace + p * rows * LANES, workspace + q * rows * LANES,
                                            (V *)(square + p * LANES), (V *)(square + q * LANES));
        }
        for (int64_t c = 0; c < cols; c++)
            EACH_VECTOR {
                const double *column = workspace + c * rows * LANES + v * WIDTH;
                V length = v_sqrt(dot(LANES, rows, column, column)) * top[v];
                for (int64_t i = v * WIDTH; i < (v + 1) * WIDTH && first + i < count; i++)
                    out[(first + i) * cols + c] = length[i - v * WIDTH];
            }
    }
}

// The largest absolute eigenvalue (count) of matrices (count, n, n) as the limit of ||A^k||^(1/k), k = 2^SQUARINGS:
// Gelfand, Matematicheskii Sbornik 1941. With ||A^k|| between 1/C and C times radius^k it is off by a share of log C / k.
void spectral_radii(int64_t count, int64_t n, const double *from, const int64_t stride[3], double *out, double *workspace) {
    for (int64_t first = 0; first < count; first += WIDTH) {
        double *now = workspace, *next = workspace + n * n * WIDTH, share = 1;
        V top = gather(count, n, n, from, stride, first, WIDTH, now), logs = {0}, vanished = {0};
        for (int squaring = 0; squaring <= SQUARINGS; squaring++, share /= 2) {
            if (squaring) {
                multiply(WIDTH, n, now, now, next);
                double *last = now;
                now = next, next = last;
            }
            V length = v_sqrt(dot(WIDTH, n * n, now, now));
            M gone = length == (V){0};
            vanished = pick(gone, splat(1), vanished);
            length = pick(gone, splat(1), length);
            logs += share * v_log_of_sum(length);
            for (int64_t i = 0; i < n * n * WIDTH; i += WIDTH) store(now + i, load(now + i) / length);
        }
        V radius = pick(vanished > (V){0}, (V){0}, v_exp(logs) * top);
        for (int64_t i = 0; i < WIDTH && first + i < count; i++) out[first + i] = radius[i];
    }
}
