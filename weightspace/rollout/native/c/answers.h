// How sequences are answered, judged while their outputs still lie in cache: cross-entropy and right answers.
#pragma once
#include "masks.h"

// Of the sequences of a slice: nats and what was asked by lane; right answers and questions, weighted.
typedef struct {
    V nats[PER_ROW], strange[PER_ROW];  // strange: 0, or NaN once an output was not finite
    double right, asked;
} Verdict;

// The outputs (class, lane) of one head, target by lane: -1 where nothing is asked, -2 where there is no sequence.
INLINE void judge_head(const REAL *tile, int64_t classes, const REAL *wanted, REAL weight, Verdict *verdict) {
    int64_t right = 0, asked = 0;
    for (int64_t v = 0; v < PER_ROW; v++) {
        const REAL *o = tile + v * WIDTH;
        V want = load(wanted + v * WIDTH), top = load(o), answer = {0}, strange = top - top, sum = {0}, log_odds = {0};
        for (int64_t k = 1; k < classes; k++) {
            V x = load(o + k * LANES);
            strange += x - x;
            answer = pick(x > top, splat((REAL)k), answer);
            top = larger(x, top);
        }
        for (int64_t k = 0; k < classes; k++) {
            V x = load(o + k * LANES) - top;
            log_odds = pick(want == splat((REAL)k), x, log_odds);
            sum += v_exp_of_negative(x);
        }
        M is_asked = want >= (V){0};
        verdict->nats[v] += pick(is_asked, (v_log_of_sum(sum) - log_odds) * weight, (V){0});
        verdict->strange[v] += pick(want == splat(-2), (V){0}, strange);
        right += count_true(want == answer);
        asked += count_true(is_asked);
    }
    verdict->right += (double)weight * (double)right;
    verdict->asked += (double)weight * (double)asked;
}

// The outputs (head and class, lane) of one step; target (lanes, head).
static void judge(const REAL *tile, int64_t heads, int64_t classes, const int64_t *target, REAL weight, int64_t lanes,
                  Verdict *verdict) {
    for (int64_t h = 0; h < heads; h++, tile += classes * LANES) {
        REAL wanted[LANES] __attribute__((aligned(VECTOR_BYTES)));
        if (heads == 1 && lanes == LANES)  // as most are
            for (int64_t l = 0; l < LANES; l++) wanted[l] = (REAL)(int32_t)target[l];
        else
            for (int64_t l = 0; l < LANES; l++) wanted[l] = l < lanes ? (REAL)(int32_t)target[l * heads + h] : -2;
        judge_head(tile, classes, wanted, weight, verdict);
    }
}

// Adds a slice's verdict to a model's: nats, right answers and questions, and 0 or NaN.
static void pronounce(const Verdict *verdict, double *out) {
    for (int v = 0; v < PER_ROW; v++)
        for (int i = 0; i < WIDTH; i++) out[0] += verdict->nats[v][i], out[3] += verdict->strange[v][i];
    out[1] += verdict->right;
    out[2] += verdict->asked;
}
