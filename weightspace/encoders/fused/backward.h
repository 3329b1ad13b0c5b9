// The way back through one model: gradients of weights are added in the order of layers, last first.
#pragma once
#include "forward.h"

static void transpose(const REAL *matrix, int64_t rows, int64_t columns, REAL *out) {
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < columns; j++) out[j * rows + i] = matrix[i * columns + j];
}

static void transpose_weights(const Stack *s, REAL *transposed) {
    Places at = places(s), to = transposed_places(s);
    int64_t width = s->width;
    for (int64_t l = 0; l < s->layers; l++) {
        const REAL *weights = s->weights + first_size(s) + l * at.all;
        REAL *out = transposed + l * to.all;
        transpose(weights + at.mix, EDGE, MIXED, out + to.mix);
        for (int64_t i = 0; i < EDGE; i++)
            for (int64_t j = 0; j < SPAN; j++)
                out[to.product + i * SPAN + j] = j < PRODUCT ? weights[at.product + j * EDGE + i] : 0;
        transpose(weights + at.ends, width, ENDS, out + to.ends);
        transpose(weights + at.context, width, width, out + to.context);
        transpose(weights + at.first, width + HEARD, width, out + to.first);
        transpose(weights + at.second, width, width, out + to.second);
    }
}

// Gradients of normalised inputs, those of the nodes' network -> of its inputs (in `d`), by which states grow, too.
static void normalise_back(const Stack *s, const REAL *weights, const Room *room, REAL *d, REAL *gradient) {
    Places at = places(s);
    int64_t inputs = s->width + HEARD;
    for (int64_t i = 0; i < s->nodes; i++) {
        REAL *row = d + i * inputs;
        const REAL *normal = room->normal + i * inputs;
        V sums = splat(0), along = splat(0);
        for (int64_t c = 0; c < inputs; c += WIDTH) {
            V value = load(row + c), own = load(normal + c), scaled = value * load(weights + at.scale + c);
            store(gradient + at.scale + c, load(gradient + at.scale + c) + value * own);
            store(gradient + at.shift + c, load(gradient + at.shift + c) + value);
            store(row + c, scaled);
            sums += scaled;
            along += scaled * own;
        }
        REAL mean = total(sums) / s->real_inputs, share = total(along) / s->real_inputs;
        for (int64_t c = 0; c < inputs; c += WIDTH)
            store(row + c, room->rstd[i] * load(s->real + c) * (load(row + c) - mean - load(normal + c) * share));
    }
}

// Gradients dx of next node states -> of node states, and in room->dnormal of what nodes heard.
static void nodes_back(const Stack *s, const REAL *weights, const REAL *transposed, Room *room, const REAL *x,
                       const REAL *heard, REAL *dx, REAL *gradient) {
    Places at = places(s), to = transposed_places(s);
    int64_t n = s->nodes, width = s->width, inputs = width + HEARD;
    REAL *mean = room->context, *sum = mean + width, *back = sum + width;
    normalise(s, x, heard, room->normal, room->rstd);
    activate(s, weights, room, room->dnormal);
    contextualise(s, weights, x, mean, back);
    add_outer(room->active, n, width, dx, width, gradient + at.second);
    add_sums(dx, n, width, gradient + at.second_bias);
    linear(dx, n, width, transposed + to.second, width, room->dactive, 0);
    for (int64_t c = 0; c < n * width; c += WIDTH) {
        V value = load(room->middle + c), gate = v_sigmoid(value);
        store(room->dactive + c, load(room->dactive + c) * (gate * (1 + value * (1 - gate))));
    }
    add_outer(room->dnormal, n, inputs, room->dactive, width, gradient + at.first);
    add_sums(room->dactive, n, width, gradient + at.first_bias);
    linear(room->dactive, n, width, transposed + to.first, inputs, room->dnormal, 0);
    normalise_back(s, weights, room, room->dnormal, gradient);
    memset(sum, 0, width * sizeof(REAL));
    add_sums(dx, n, width, sum);
    add_outer(mean, 1, width, sum, width, gradient + at.context);
    linear(sum, 1, width, transposed + to.context, width, back, 0);
    for (int64_t i = 0; i < n; i++)
        for (int64_t c = 0; c < width; c += WIDTH)
            store(dx + i * width + c, load(dx + i * width + c) + load(room->dnormal + i * inputs + c) +
                                          load(back + c) / (REAL)n);
}

// Gradients of what target i heard -> of its edges, in `mixed` (as own and as opposite), in `de`, and of ends.
static void hear_back(const Stack *s, Presence there, Room *room, int64_t i, int c, const REAL *next, const REAL *heard,
                      const Bits *bits, REAL *de) {
    int64_t n = s->nodes;
    const REAL *modulation = room->ends + MODULATION + c, *absent = there.absent + i * n;
    const REAL *dheard = room->dnormal + i * (s->width + HEARD) + s->width + c;
    REAL *own = room->mixed + i * n * MIXED + OWN + c, *opposite = room->mixed + i * MIXED + OPPOSITE + c;
    REAL *dends = room->dends + c;
    V best = load(heard + MAXIMUM + c), ties = splat(0), target = splat(0);
    for (int64_t j = 0; j < n; j++)
        ties += where(equal(load(next + j * EDGE) * load(modulation + j * ENDS) + absent[j], best), splat(1));
    V share = load(dheard + MAXIMUM) / ties, mean = load(dheard + MEAN) / there.degree[i];
    Totals back = {splat(0), splat(0)};
    int factor = s->factor[i] != 0;
    if (factor) {
        Totals sums = totals(s, next, modulation);
        V product = s->factor[i] * load(dheard + FACTOR);
        back = (Totals){product * sums.input, product * sums.hidden};
    }
    store(de + i * EDGE, load(de + i * EDGE) + load(dheard + DIAGONAL));
    for (int64_t j = 0; j < n; j++) {
        V state = load(next + j * EDGE), modulated = load(modulation + j * ENDS);
        V message = mean + where(equal(state * modulated + absent[j], best), share);
        if (factor) message += s->hidden[j] * back.hidden + s->input[j] * back.input;
        V gradient = load(de + j * EDGE) + message * modulated;
        V update = where(bits[j * (EDGE / WIDTH)], gradient);
        store(de + j * EDGE, gradient);
        store(own + j * MIXED, update);
        store(opposite + j * n * MIXED, update);
        store(dends + j * ENDS + DRIVE, load(dends + j * ENDS + DRIVE) + update);
        store(dends + j * ENDS + MODULATION, load(dends + j * ENDS + MODULATION) + message * state);
        target += update;
    }
    store(dends + i * ENDS + TARGET, target);
}

// Gradients of the product, in room->dproduct, from those of edges' updates, and of its weights.
static void product_back(const Stack *s, const REAL *transposed, Room *room, REAL *gradient) {
    Places at = places(s), to = transposed_places(s);
    int64_t n = s->nodes, packed = packed_row(s);
    for (int64_t i = 0; i < n; i++) {
        const REAL *update = room->mixed + i * n * MIXED + OWN;
        REAL *out = room->dproduct + i * packed;
        multiply((Product){room->product + i * packed, 1, PRODUCT, update, MIXED, gradient + at.product, EDGE, PRODUCT, n,
                           EDGE, 1});
        multiply((Product){update, MIXED, 1, transposed + to.product, SPAN, room->row, SPAN, n, EDGE, SPAN, 0});
        for (int64_t j = 0; j < n; j++)
            for (int c = 0; c < PRODUCT; c++) out[j * PRODUCT + c] = room->row[j * SPAN + c];
        for (int64_t c = n * PRODUCT; c < packed; c++) out[c] = 0;
    }
}

// Gradients of both fields of the product, in LEFT and RIGHT of `mixed`.
static void fields_back(const Stack *s, Room *room) {
    int64_t n = s->nodes, packed = packed_row(s);
    REAL scale = (REAL)(1 / sqrt((double)n));
    pack(n, room->mixed + RIGHT, MIXED, n * MIXED, scale, room->turned, packed);
    multiply_channels((Product){room->dproduct, packed, PRODUCT, room->turned, packed, room->dleft, packed, n, n, packed, 0});
    multiply_channels((Product){room->mixed + LEFT, MIXED, n * MIXED, room->dproduct, packed, room->dright, packed, n, n,
                                packed, 0});
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < n; j++)
            for (int c = 0; c < PRODUCT; c++) {
                room->mixed[(i * n + j) * MIXED + LEFT + c] = room->dleft[i * packed + j * PRODUCT + c];
                room->mixed[(i * n + j) * MIXED + RIGHT + c] = scale * room->dright[i * packed + j * PRODUCT + c];
            }
}

// Gradients of next states, in room->de and dx -> of states, in their place.
static void layer_back(const Stack *s, int64_t model, int64_t layer, Room *room, const REAL *e, const REAL *x, REAL *gradient) {
    Places at = places(s), to = transposed_places(s);
    int64_t n = s->nodes, width = s->width, kept = model * s->layers + layer;
    const REAL *weights = s->weights + first_size(s) + layer * at.all, *transposed = room->transposed + layer * to.all;
    const REAL *heard = s->kept_heard + kept * n * HEARD, *next = e + n * n * EDGE;
    const Bits *bits = s->kept_bits + kept * (n * n * EDGE / WIDTH);
    nodes_back(s, weights, transposed, room, x, heard, room->dx, gradient);
    fill_rows(room->ends, weights + at.ends_bias, n, ENDS);
    linear(x, n, width, weights + at.ends, ENDS, room->ends, 1);
    multiply((Product){e, EDGE, 1, weights + at.mix + LEFT, MIXED, room->mixed + LEFT, MIXED, n * n, EDGE, 2 * PRODUCT, 0});
    field_product(s, room);
    memset(room->dends, 0, n * ENDS * sizeof(REAL));
    for (int64_t i = 0; i < n; i++)
        for (int c = 0; c < EDGE; c += WIDTH)
            hear_back(s, presence(s, model), room, i, c, next + i * n * EDGE + c, heard + i * HEARD,
                      bits + (i * n * EDGE + c) / WIDTH, room->de + i * n * EDGE + c);
    product_back(s, transposed, room, gradient);
    fields_back(s, room);
    add_outer_of_edges(e, n, EDGE, room->mixed, MIXED, gradient + at.mix);
    linear(room->mixed, n * n, MIXED, transposed + to.mix, EDGE, room->de, 1);
    add_outer(x, n, width, room->dends, ENDS, gradient + at.ends);
    add_sums(room->dends, n, ENDS, gradient + at.ends_bias);
    linear(room->dends, n, ENDS, transposed + to.ends, width, room->dx, 1);
}

// Gradients of pooled values -> of values.
static void pool_back(const REAL *values, int64_t count, int64_t size, const int32_t *class, const REAL *shares,
                      const REAL *gradient, REAL *d) {
    for (int64_t at = 0; at < count; at++) {
        if (class[at] < 0) {
            memset(d + at * size, 0, size * sizeof(REAL));
            continue;
        }
        const REAL *row = gradient + class[at] * 2 * size;
        for (int64_t c = 0; c < size; c += WIDTH) {
            V value = load(values + at * size + c);
            store(d + at * size + c, shares[class[at]] * (load(row + c) + 2 * value * load(row + size + c)));
        }
    }
}

// Gradients of the weights of first states, and of what is fixed there.
static void first_edges_back(const Stack *s, int64_t model, const REAL *e, REAL *de, REAL *gradient, REAL *fixed) {
    int64_t n = s->nodes, channels = s->channels;
    const REAL *edges = s->edges + model * n * n * channels;
    for (int64_t c = 0; c < n * n * EDGE; c += WIDTH) {
        V d = where(above(load(e + c), splat(0)), load(de + c));
        store(de + c, d);
        store(fixed + c, load(fixed + c) + d);
    }
    add_outer_of_edges(edges, n, channels, de, EDGE, gradient);
    for (int64_t i = 0; i < n; i++)
        multiply((Product){edges + i * channels, 1, n * channels, de + i * n * EDGE, EDGE, gradient + channels * EDGE, EDGE,
                           channels, n, EDGE, 1});
}

static void first_nodes_back(const Stack *s, int64_t model, const REAL *dx, REAL *gradient, REAL *fixed) {
    int64_t n = s->nodes, channels = s->channels, width = s->width;
    const REAL *values = s->values + model * n * channels;
    for (int64_t c = 0; c < n * width; c += WIDTH) store(fixed + c, load(fixed + c) + load(dx + c));
    add_outer(values, n, channels, dx, width, gradient + 2 * channels * EDGE);
}

static void model_back(const Stack *s, int64_t model, Room *room, REAL *gradient, REAL *fixed_edges, REAL *fixed_nodes) {
    int64_t field = s->nodes * s->nodes * EDGE, vector = s->nodes * s->width, layers = s->layers;
    const REAL *e = s->kept_edges + (model * (layers + 1) + layers) * field;
    const REAL *x = s->kept_states + (model * (layers + 1) + layers) * vector;
    pool_back(x, s->nodes, s->width, s->node_class, s->node_shares,
              s->pooled_nodes_gradient + model * s->node_classes * 2 * s->width, room->dx);
    pool_back(e, s->nodes * s->nodes, EDGE, s->edge_class, s->edge_shares,
              s->pooled_edges_gradient + model * s->edge_classes * 2 * EDGE, room->de);
    for (int64_t l = layers - 1; l >= 0; l--) {
        e -= field, x -= vector;
        layer_back(s, model, l, room, e, x, gradient + first_size(s) + l * places(s).all);
    }
    first_edges_back(s, model, e, room->de, gradient, fixed_edges);
    first_nodes_back(s, model, room->dx, gradient, fixed_nodes);
}
