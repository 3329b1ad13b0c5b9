// One update of AdamW for a stack of models, each row read and written once. See optimiser.py, whose numbers these are.
#include <math.h>
#include <stdint.h>
#include <string.h>

typedef struct {
    int64_t models, parameters, tensors;
    const int64_t *size;              // numbers of each tensor of one model, side by side in a row
    const float *const *gradient;     // per tensor (models, size)
    const float *lower;               // (parameters), or null
    const double *losses, *learning_rate, *weight_decay, *clip, *rate;  // (models)
    const unsigned char *learning;    // (models)
    float *row, *first, *second;      // (models, parameters), changed in place
    unsigned char *fails;             // (models): those that learned until now and cannot go on
    double number_first, root_second, beta1, beta2, epsilon;
} Update;

enum { LANES = 16 };

// The norm in double precision, because the square of a large number is larger than floats can be.
static double norm(const Update *u, int64_t model) {
    double sum[LANES] = {0}, all = 0;
    for (int64_t t = 0; t < u->tensors; t++) {
        const float *g = u->gradient[t] + model * u->size[t];
        int64_t i = 0, size = u->size[t];
        for (; i + LANES <= size; i += LANES)
            for (int l = 0; l < LANES; l++) sum[l] += (double)g[i + l] * (double)g[i + l];
        for (; i < size; i++) sum[0] += (double)g[i] * (double)g[i];
    }
    for (int l = 0; l < LANES; l++) all += sum[l];
    return sqrt(all);
}

static int all_finite(const float *values, int64_t count) {
    // Finite numbers times zero are zero, and nothing else is.
    float sum[LANES] = {0}, all = 0;
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES)
        for (int l = 0; l < LANES; l++) sum[l] += values[i + l] * 0.0f;
    for (; i < count; i++) sum[0] += values[i] * 0.0f;
    for (int l = 0; l < LANES; l++) all += sum[l];
    return all == 0;
}

// Pointers as arguments, each its own memory, so that the compiler sees that the loop can be done many at a time.
static void moments_and_params(int64_t count, const float *restrict g, float factor, float b1, float b2, float c2,
                               float kept, float size, float root, float epsilon, const float *restrict old_first,
                               const float *restrict old_second, const float *restrict old_row, float *restrict first,
                               float *restrict second, float *restrict row) {
    for (int64_t i = 0; i < count; i++) {
        float slope = g[i] * factor;
        first[i] = old_first[i] + b1 * (slope - old_first[i]);
        second[i] = old_second[i] * b2 + c2 * (slope * slope);
        row[i] = old_row[i] * kept - first[i] / (sqrtf(second[i]) * root + epsilon) * size;
    }
}

static int move(const Update *u, int64_t model, float *room) {
    int64_t count = u->parameters, done = 0;
    double length = norm(u, model), clip = u->clip[model];
    float factor = clip > 0 && clip / (length + 1e-6) < 1 ? (float)(clip / (length + 1e-6)) : 1.0f;
    double rate = u->learning_rate[model] * u->rate[model];
    float size = (float)(rate / u->number_first), kept = (float)(1 - rate * u->weight_decay[model]);
    float *restrict first = room, *restrict second = first + count, *restrict row = second + count;
    const float *restrict old_first = u->first + model * count, *restrict old_second = u->second + model * count;
    const float *restrict old_row = u->row + model * count;
    for (int64_t t = 0; t < u->tensors; t++) {
        const int64_t own = u->size[t];
        const float *restrict g = u->gradient[t] + model * u->size[t];
        moments_and_params(own, g, factor, (float)(1 - u->beta1), (float)u->beta2, (float)(1 - u->beta2), kept, size,
                           (float)u->root_second, (float)u->epsilon, old_first + done, old_second + done,
                           old_row + done, first + done, second + done, row + done);
        done += own;
    }
    if (u->lower)
        for (int64_t p = 0; p < count; p++) row[p] = row[p] < u->lower[p] ? u->lower[p] : row[p];
    // An infinite gradient makes the first moment infinite too, and with it the row.
    if (!isfinite(u->losses[model]) || !isfinite(length) || !all_finite(row, count) || !all_finite(second, count)) return 0;
    memcpy(u->first + model * count, first, count * sizeof(float));
    memcpy(u->second + model * count, second, count * sizeof(float));
    memcpy(u->row + model * count, row, count * sizeof(float));
    return 1;
}

// Every model that no other thread has taken from `next` first; `room` holds one row three times.
void update(const Update *u, int64_t *next, float *room) {
    int64_t model;
    while ((model = __atomic_fetch_add(next, 1, __ATOMIC_RELAXED)) < u->models)
        u->fails[model] = u->learning[model] && !move(u, model, room);
}
