// Embedding a stack of models by message passing, one model after another so that its edge states stay in cache.
#define REAL float
#define REAL_IS_DOUBLE 0
#define LANES 16
#include "backward.h"

// The first model of the next chunk that no thread has taken, and the one after its last; whether there is one.
static int next_chunk(const Stack *s, int64_t *taken, int64_t *first, int64_t *end) {
    *first = __atomic_fetch_add(taken, 1, __ATOMIC_RELAXED) * CHUNK;
    *end = *first + CHUNK < s->models ? *first + CHUNK : s->models;
    return *first < s->models;
}

void run_forward(const Stack *s, int64_t *taken, REAL *start) {
    Room room;
    laid_out(s, start, &room);
    for (int64_t first, end; next_chunk(s, taken, &first, &end);)
        for (int64_t model = first; model < end; model++) model_forward(s, model, &room);
}

void run_backward(const Stack *s, int64_t *taken, REAL *start) {
    Room room;
    laid_out(s, start, &room);
    transpose_weights(s, room.transposed);
    int64_t size = first_size(s) + s->layers * places(s).all, field = s->nodes * s->nodes * EDGE;
    int64_t vector = s->nodes * s->width;
    for (int64_t first, end; next_chunk(s, taken, &first, &end);) {
        int64_t chunk = first / CHUNK;
        REAL *gradient = s->weights_gradient + chunk * size, *nodes = s->fixed_nodes_gradient + chunk * vector;
        memset(gradient, 0, size * sizeof(REAL));
        memset(nodes, 0, vector * sizeof(REAL));
        for (int64_t model = first; model < end; model++) {
            REAL *edges = s->fixed_edges_gradient + (s->fixed_edges_stride ? model : chunk) * field;
            if (s->fixed_edges_stride || model == first) memset(edges, 0, field * sizeof(REAL));
            model_back(s, model, &room, gradient, edges, nodes);
        }
    }
}
