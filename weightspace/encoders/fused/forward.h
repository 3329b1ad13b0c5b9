// One round of messages of one model: next edge and node states, as `Layer.forward` has them.
#pragma once
#include "stack.h"

typedef struct {
    const REAL *absent, *degree;
} Presence;

static Presence presence(const Stack *s, int64_t model) {
    return (Presence){s->absent + model * s->absent_stride, s->degree + model * s->degree_stride};
}

// First edge states: relu of what is fixed and of the weights of both directions.
static void first_edges(const Stack *s, int64_t model, REAL *e) {
    int64_t n = s->nodes, channels = s->channels;
    const REAL *edges = s->edges + model * n * n * channels, *fixed = s->fixed_edges + model * s->fixed_edges_stride;
    const REAL *absent = presence(s, model).absent, *weights = s->weights;
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < n; j++)
            for (int64_t c = 0; c < EDGE; c += WIDTH) {
                int64_t at = i * n + j;
                const REAL *there = edges + at * channels, *back = edges + (j * n + i) * channels;
                V sum = load(fixed + at * EDGE + c) + absent[at];
                for (int64_t k = 0; k < channels; k++) {
                    if (there[k] == 0 && back[k] == 0) continue;
                    sum += there[k] * load(weights + k * EDGE + c) + back[k] * load(weights + (channels + k) * EDGE + c);
                }
                store(e + at * EDGE + c, at_least(sum, 0));
            }
}

static void first_nodes(const Stack *s, int64_t model, REAL *x) {
    int64_t n = s->nodes, channels = s->channels, width = s->width;
    const REAL *values = s->values + model * n * channels, *weights = s->weights + 2 * channels * EDGE;
    memcpy(x, s->fixed_nodes, n * width * sizeof(REAL));
    for (int64_t i = 0; i < n * channels; i++) {
        REAL *own = x + i / channels * width;
        for (int64_t c = 0; c < width && values[i] != 0; c += WIDTH)
            store(own + c, load(own + c) + values[i] * load(weights + i % channels * width + c));
    }
}

// A field of PRODUCT channels, one after another as `multiply_channels` reads it, scaled; or that of opposite edges.
static void pack(int64_t n, const REAL *field, int64_t row, int64_t term, REAL scale, REAL *packed, int64_t packed_row) {
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < n; j++)
            for (int c = 0; c < PRODUCT; c++) packed[i * packed_row + j * PRODUCT + c] = scale * field[i * row + j * term + c];
    for (int64_t i = 0; i < n; i++)
        for (int64_t c = n * PRODUCT; c < packed_row; c++) packed[i * packed_row + c] = 0;
}

// The product of the edge fields LEFT and RIGHT of `mixed` by their channels, over the root of the number of nodes.
static void field_product(const Stack *s, Room *room) {
    int64_t n = s->nodes, packed = packed_row(s);
    pack(n, room->mixed + RIGHT, n * MIXED, MIXED, (REAL)(1 / sqrt((double)n)), room->right, packed);
    multiply_channels((Product){room->mixed + LEFT, n * MIXED, MIXED, room->right, packed, room->product, packed, n, n,
                                packed, 0});
}

// Totals over sources that are hidden, and over those that are inputs, of what a node hears in some channels.
typedef struct { V hidden, input; } Totals;

static Totals totals(const Stack *s, const REAL *e, const REAL *modulation) {
    Totals sum = {splat(0), splat(0)};
    for (int64_t j = 0; j < s->nodes; j++) {
        V message = load(e + j * EDGE) * load(modulation + j * ENDS);
        sum.hidden += s->hidden[j] * message;
        sum.input += s->input[j] * message;
    }
    return sum;
}

// Edges from all sources into target i, in the channels from c on: next states, and what the target hears.
static void hear(const Stack *s, Presence there, const Room *room, int64_t i, int c, const REAL *e, REAL *next, REAL *heard,
                 Bits *bits) {
    int64_t n = s->nodes;
    const REAL *own = room->mixed + i * n * MIXED + OWN + c, *opposite = room->mixed + i * MIXED + OPPOSITE + c;
    const REAL *ends = room->ends + c, *absent = there.absent + i * n;
    V target = load(ends + i * ENDS + TARGET), sum = splat(0), best = splat(-INFINITY);
    for (int64_t j = 0; j < n; j++) {
        V silence = splat(absent[j]);
        V update = load(own + j * MIXED) + load(opposite + j * n * MIXED) + target + (load(ends + j * ENDS) + silence);
        if (bits) bits[j * (EDGE / WIDTH)] = above(update, splat(0));
        V state = load(e + j * EDGE) + at_least(update, 0);
        store(next + j * EDGE, state);
        V message = state * load(ends + j * ENDS + MODULATION);
        sum += message;
        best = maximum(best, message + silence);
    }
    store(heard + MEAN + c, sum / there.degree[i]);
    store(heard + MAXIMUM + c, best);
    store(heard + DIAGONAL + c, load(next + i * EDGE));
    V product = splat(0);
    if (s->factor[i] != 0) {
        Totals sums = totals(s, next, ends + MODULATION);
        product = s->factor[i] * (sums.hidden * sums.input);
    }
    store(heard + FACTOR + c, product);
}

static REAL total(V values) {
    REAL sum = 0;
    for (int k = 0; k < WIDTH; k++) sum += values[k];
    return sum;
}

// Normalised inputs of the nodes' network, of mean 0 and variance 1, and one over their deviations.
static void normalise(const Stack *s, const REAL *x, const REAL *heard, REAL *normal, REAL *rstd) {
    int64_t inputs = s->width + HEARD;
    for (int64_t i = 0; i < s->nodes; i++) {
        REAL *row = normal + i * inputs;
        memcpy(row, x + i * s->width, s->width * sizeof(REAL));
        memcpy(row + s->width, heard + i * HEARD, HEARD * sizeof(REAL));
        V sums = splat(0), squares = splat(0);
        for (int64_t c = 0; c < inputs; c += WIDTH) {
            V value = where(above(load(s->real + c), splat(0)), load(row + c));
            sums += value;
            store(row + c, value);
        }
        REAL mean = total(sums) / s->real_inputs;
        for (int64_t c = 0; c < inputs; c += WIDTH) {
            V value = load(s->real + c) * (load(row + c) - mean);
            squares += value * value;
            store(row + c, value);
        }
        rstd[i] = 1 / sqrtf(total(squares) / s->real_inputs + 1e-5f);
        for (int64_t c = 0; c < inputs; c += WIDTH) store(row + c, rstd[i] * load(row + c));
    }
}

// The nodes' network up to its activation: room->normal, with `scaled` = scale * normal + shift, middle, and active.
static void activate(const Stack *s, const REAL *weights, Room *room, REAL *scaled) {
    Places at = places(s);
    int64_t n = s->nodes, width = s->width, inputs = width + HEARD;
    for (int64_t i = 0; i < n; i++)
        for (int64_t c = 0; c < inputs; c += WIDTH)
            store(scaled + i * inputs + c,
                  load(room->normal + i * inputs + c) * load(weights + at.scale + c) + load(weights + at.shift + c));
    fill_rows(room->middle, weights + at.first_bias, n, width);
    linear(scaled, n, inputs, weights + at.first, width, room->middle, 1);
    for (int64_t c = 0; c < n * width; c += WIDTH) {
        V value = load(room->middle + c);
        store(room->active + c, value * v_sigmoid(value));
    }
}

// Means of node states, and what is sent from them to all nodes.
static void contextualise(const Stack *s, const REAL *weights, const REAL *x, REAL *mean, REAL *context) {
    memset(mean, 0, s->width * sizeof(REAL));
    add_sums(x, s->nodes, s->width, mean);
    for (int64_t c = 0; c < s->width; c++) mean[c] /= s->nodes;
    linear(mean, 1, s->width, weights + places(s).context, s->width, context, 0);
}

static void layer_forward(const Stack *s, int64_t model, const REAL *weights, Room *room, const REAL *e, const REAL *x,
                          REAL *next_e, REAL *next_x, REAL *heard, Bits *bits) {
    Places at = places(s);
    Presence there = presence(s, model);
    int64_t n = s->nodes, width = s->width, packed = packed_row(s);
    fill_rows(room->ends, weights + at.ends_bias, n, ENDS);
    linear(x, n, width, weights + at.ends, ENDS, room->ends, 1);
    linear(e, n * n, EDGE, weights + at.mix, MIXED, room->mixed, 0);
    field_product(s, room);
    for (int64_t i = 0; i < n; i++)
        multiply((Product){room->product + i * packed, PRODUCT, 1, weights + at.product, EDGE,
                           room->mixed + i * n * MIXED + OWN, MIXED, n, PRODUCT, EDGE, 1});
    for (int64_t i = 0; i < n; i++)
        for (int c = 0; c < EDGE; c += WIDTH)
            hear(s, there, room, i, c, e + i * n * EDGE + c, next_e + i * n * EDGE + c, heard + i * HEARD,
                 bits ? bits + (i * n * EDGE + c) / WIDTH : bits);
    normalise(s, x, heard, room->normal, room->rstd);
    activate(s, weights, room, room->dnormal);
    contextualise(s, weights, x, room->context, room->context + width);
    for (int64_t i = 0; i < n; i++)
        for (int64_t c = 0; c < width; c += WIDTH)
            store(next_x + i * width + c, load(x + i * width + c) + load(weights + at.second_bias + c) +
                                              load(room->context + width + c));
    linear(room->active, n, width, weights + at.second, width, next_x, 1);
}

// Means of values and of their squares over the edges or nodes of each class.
static void pool(const REAL *values, int64_t count, int64_t size, const int32_t *class, const REAL *shares, int64_t classes,
                 REAL *pooled) {
    memset(pooled, 0, classes * 2 * size * sizeof(REAL));
    for (int64_t at = 0; at < count; at++) {
        if (class[at] < 0) continue;
        REAL *sum = pooled + class[at] * 2 * size, *square = sum + size;
        for (int64_t c = 0; c < size; c += WIDTH) {
            V value = load(values + at * size + c);
            store(sum + c, load(sum + c) + value);
            store(square + c, load(square + c) + value * value);
        }
    }
    for (int64_t k = 0; k < classes; k++)
        for (int64_t c = 0; c < 2 * size; c++) pooled[k * 2 * size + c] *= shares[k];
}

static void model_forward(const Stack *s, int64_t model, Room *room) {
    int64_t field = s->nodes * s->nodes * EDGE, vector = s->nodes * s->width, layers = s->layers;
    int keeps = s->kept_edges != 0;
    REAL *e = keeps ? s->kept_edges + model * (layers + 1) * field : room->e;
    REAL *x = keeps ? s->kept_states + model * (layers + 1) * vector : room->x, *heard = room->heard;
    Bits *bits = 0;
    first_edges(s, model, e);
    first_nodes(s, model, x);
    for (int64_t l = 0; l < layers; l++) {
        REAL *next_e = keeps ? e + field : e, *next_x = keeps ? x + vector : room->dx;
        if (keeps) {
            heard = s->kept_heard + (model * layers + l) * s->nodes * HEARD;
            bits = s->kept_bits + (model * layers + l) * (field / WIDTH);
        }
        layer_forward(s, model, s->weights + first_size(s) + l * places(s).all, room, e, x, next_e, next_x, heard, bits);
        if (!keeps) memcpy(next_x = x, room->dx, vector * sizeof(REAL));
        e = next_e, x = next_x;
    }
    pool(x, s->nodes, s->width, s->node_class, s->node_shares, s->node_classes,
         s->pooled_nodes + model * s->node_classes * 2 * s->width);
    pool(e, s->nodes * s->nodes, EDGE, s->edge_class, s->edge_shares, s->edge_classes,
         s->pooled_edges + model * s->edge_classes * 2 * EDGE);
}
