// Kernels of the native engine beside plain loops in double precision: a line for each size, with the worst difference.
// Run by test_native_kernels.py on this machine and, where there are a cross compiler and an emulator, as on others.
#include <stdio.h>
#include <stdlib.h>

#include "engine.c"

static REAL *room(int64_t count) {
    REAL *made = aligned_alloc(64, (count * sizeof(REAL) + 63) / 64 * 64);
    for (int64_t i = 0; i < count; i++) made[i] = (REAL)(rand() / (double)RAND_MAX - 0.5);
    return made;
}

static void note(double error, double *worst) {
    if (!(error <= *worst)) *worst = error;
}

static double product_error(int64_t rows, int64_t cols) {
    REAL *weight = room(rows * cols), *packed = room(rows * cols), *x = room(cols * LANES), *out = room(rows * LANES);
    REAL *bias = room(rows), *first = room(rows * LANES), *second = room(rows * LANES), *factor = room(rows), same = -3;
    Soon wanted[2] = {soon(x, cols), soon(x, cols)};
    double worst = 0;
    pack(packed, rows, cols, (Block){0, rows, 0, cols}, weight, cols, 1);
    Term term = {packed, x, cols};
    Addend addends[2] = {{first, &same, 0}, {second, factor, 1}};
    product(&(Sum){rows, 1, 2, &term, addends, bias, out}, wanted);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t l = 0; l < LANES; l++) {
            double sum = bias[r] - 3 * (double)first[r * LANES + l] + (double)factor[r] * second[r * LANES + l];
            for (int64_t k = 0; k < cols; k++) sum += (double)weight[r * cols + k] * x[k * LANES + l];
            note(fabs(sum - out[r * LANES + l]) / sqrt(cols), &worst);
        }
    return worst;
}

static double pairs_error(int64_t rows) {
    int64_t n = rows * LANES;
    REAL *a = room(n), *b = room(n), *c = room(n), *before = room(n), *out = room(n);
    double worst = 0;
    memcpy(out, before, n * sizeof(REAL));
    Pair pairs[3] = {{a, b, 1}, {b, c, -1}, {c, c, 3}};
    add_products(3, 0, n, out, pairs);
    for (int64_t i = 0; i < n; i++) {
        double sum = before[i] + (double)a[i] * b[i] - (double)b[i] * c[i] + 3 * (double)c[i] * c[i];
        note(fabs(sum - out[i]), &worst);
    }
    memcpy(out, before, n * sizeof(REAL));
    add_products(1, 1, n, out, pairs);
    for (int64_t i = 0; i < n; i++) note(fabs(before[i] + (double)a[i] * b[i] - out[i]), &worst);
    for (int sign = -1; sign <= 1; sign++) {
        double scale[4] = {sign ? 1 : 2, sign ? 1 : -3, sign ? 1 : 0.5, sign ? sign : -1};
        Pair crossed[4] = {{a, b, scale[0]}, {c, before, scale[1]}, {a, before, scale[2]}, {c, b, scale[3]}};
        REAL *other = room(n), *start = room(n);
        memcpy(out, before, n * sizeof(REAL));
        memcpy(start, other, n * sizeof(REAL));
        if (sign == 1) add_crossed(1, n, out, other, crossed);
        else if (sign == -1) add_crossed(-1, n, out, other, crossed);
        else add_crossed(0, n, out, other, crossed);
        for (int64_t i = 0; i < n; i++) {
            double ab = (double)a[i] * b[i], cd = (double)c[i] * before[i], ad = (double)a[i] * before[i], cb = (double)c[i] * b[i];
            note(fabs(before[i] + scale[0] * ab + scale[1] * cd - out[i]), &worst);
            note(fabs(start[i] + scale[2] * ad + scale[3] * cb - other[i]), &worst);
        }
    }
    return worst;
}

static double gradient_error(int64_t rows, int64_t cols, int64_t steps) {
    REAL *dy = room(steps * rows * LANES), *x = room(steps * cols * LANES), *g = room(rows * cols), *b = room(rows);
    double worst = 0;
    memset(g, 0, rows * cols * sizeof(REAL));
    memset(b, 0, rows * sizeof(REAL));
    for (int64_t r = 0; r < rows; r += G_ROWS) {
        int64_t count = rows - r < G_ROWS ? rows - r : G_ROWS;
        bias_gradient(count, steps, dy + r * LANES, rows * LANES, b + r);
        weight_gradient(count, cols, steps, dy + r * LANES, rows * LANES, x, cols * LANES, g + r, rows);
    }
    for (int64_t r = 0; r < rows; r++)
        for (int64_t k = -1; k < cols; k++) {
            double sum = 0;
            for (int64_t t = 0; t < steps; t++)
                for (int64_t l = 0; l < LANES; l++)
                    sum += (double)dy[(t * rows + r) * LANES + l] * (k < 0 ? 1 : x[(t * cols + k) * LANES + l]);
            note(fabs(sum - (k < 0 ? b[r] : g[k * rows + r])) / sqrt(steps * LANES), &worst);
        }
    return worst;
}

static double map_error(int64_t opcode, double (*exact)(double)) {
    REAL *x = room(LANES), *out = room(LANES);
    double worst = 0;
    for (int i = 0; i < 2000; i++) {
        for (int64_t l = 0; l < LANES; l++) x[l] = (REAL)(40 * (rand() / (double)RAND_MAX - 0.5));
        apply(opcode, 1, out, x, x, x, (double[2]){0});
        for (int64_t l = 0; l < LANES; l++) {
            double right = exact((double)x[l]);
            note(fabs(out[l] - right) / (1 + fabs(right)), &worst);
        }
    }
    return worst;
}

static double sigmoid(double x) { return 1 / (1 + exp(-x)); }

int main(void) {
    for (int64_t rows = 1; rows <= 40; rows += 13) printf("pairs %lld %g\n", (long long)rows, pairs_error(rows));
    for (int64_t rows = 1; rows <= 40; rows += rows < 10 ? 1 : 5)
        for (int64_t cols = 1; cols <= 33; cols += 4)
            printf("product %lld %lld %g\n", (long long)rows, (long long)cols, product_error(rows, cols));
    for (int64_t rows = 1; rows <= 20; rows += 3)
        for (int64_t cols = 1; cols <= 9; cols++)
            printf("gradient %lld %lld %g\n", (long long)rows, (long long)cols, gradient_error(rows, cols, 5));
    printf("sigmoid 0 0 %g\ntanh 0 0 %g\nexp 0 0 %g\n", map_error(SIGMOID, sigmoid), map_error(TANH, tanh),
           map_error(EXP, exp));
    return 0;
}
