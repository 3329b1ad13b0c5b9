// Updates of AdamW for a stack of models, each row read and written once. See optimiser.py, whose numbers these are.
#include <math.h>
#include <stdint.h>
#include <string.h>

typedef struct {
    int64_t models, parameters, tensors;
    const int64_t *size;              // numbers of each tensor of one model, side by side in a row
    const float *lower;               // (parameters), or null
    const double *learning_rate, *weight_decay, *clip;  // (models)
    const double *rate;               // (updates, models)
    const double *number_first, *root_second;  // (updates)
    const unsigned char *learning;    // (models)
    float *row, *first, *second;      // (models, parameters), changed in place
    int64_t *failed;                  // (models): the update that a model could not make; what it was where there is none
    double beta1, beta2, epsilon;
} Updates;

enum { LANES = 16 };

// The norm in double precision, because the square of a large number is larger than floats can be.
static double norm(const Updates *u, const float *g) {
    double sum[LANES] = {0}, all = 0;
    for (int64_t t = 0; t < u->tensors; g += u->size[t++]) {
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

typedef struct { float factor, b1, b2, c2, kept, size, root, epsilon; } Numbers;

// Moves numbers of a row and their moments in place; `was_...` is what they were.
// Pointers as arguments, each its own memory, so that the compiler sees that the loop can be done many at a time.
static __attribute__((noinline)) void move_some(
    int64_t count, Numbers n, const float *restrict g, float *restrict first, float *restrict second,
    float *restrict row, float *restrict was_first, float *restrict was_second, float *restrict was_row) {
    for (int64_t i = 0; i < count; i++) {
        float slope = g[i] * n.factor, m = first[i], v = second[i], p = row[i];
        was_first[i] = m, was_second[i] = v, was_row[i] = p;
        first[i] = m = m + n.b1 * (slope - m);
        second[i] = v = v * n.b2 + n.c2 * (slope * slope);
        row[i] = p * n.kept - m / (sqrtf(v) * n.root + n.epsilon) * n.size;
    }
}

// Moves a model by its loss and gradients (parameters), with room for three rows. 0, with its row as it was, unless it
// learns and all that comes of it is finite.
int move(const Updates *u, int64_t model, int64_t update, double loss, const float *gradient, float *room) {
    if (!u->learning[model]) return 0;
    int64_t count = u->parameters;
    double length = norm(u, gradient), clip = u->clip[model];
    double rate = u->learning_rate[model] * u->rate[update * u->models + model];
    if (!isfinite(loss) || !isfinite(length)) return u->failed[model] = update, 0;
    const Numbers n = {
        .factor = clip > 0 && clip / (length + 1e-6) < 1 ? (float)(clip / (length + 1e-6)) : 1.0f,
        .b1 = (float)(1 - u->beta1), .b2 = (float)u->beta2, .c2 = (float)(1 - u->beta2),
        .kept = (float)(1 - rate * u->weight_decay[model]), .size = (float)(rate / u->number_first[update]),
        .root = (float)u->root_second[update], .epsilon = (float)u->epsilon,
    };
    float *first = u->first + model * count, *second = u->second + model * count, *row = u->row + model * count;
    move_some(count, n, gradient, first, second, row, room, room + count, room + 2 * count);
    if (u->lower)
        for (int64_t p = 0; p < count; p++) row[p] = row[p] < u->lower[p] ? u->lower[p] : row[p];
    if (all_finite(row, count) && all_finite(second, count)) return 1;
    memcpy(first, room, count * sizeof(float));
    memcpy(second, room + count, count * sizeof(float));
    memcpy(row, room + 2 * count, count * sizeof(float));
    return u->failed[model] = update, 0;
}

// One update of every model that no other thread has taken from `next` first, by losses (models) and gradients, per tensor
// (models, size); `room` has space for four rows.
void update(const Updates *u, const double *losses, const float *const *gradient, int64_t *next, float *room) {
    float *row = room + 3 * u->parameters;
    int64_t model;
    while ((model = __atomic_fetch_add(next, 1, __ATOMIC_RELAXED)) < u->models) {
        for (int64_t t = 0, done = 0; t < u->tensors; done += u->size[t++])
            memcpy(row + done, gradient[t] + model * u->size[t], u->size[t] * sizeof(float));
        move(u, model, 0, losses[model], row, room);
    }
}
