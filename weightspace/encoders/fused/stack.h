// A stack of models of one layout, as the callers lay it out in memory, and where the parts of weights begin.
#pragma once
#include "products.h"

enum { MIXED = 2 * EDGE + 2 * PRODUCT, OWN = 0, OPPOSITE = EDGE, LEFT = 2 * EDGE, RIGHT = 2 * EDGE + PRODUCT };
enum { DRIVE = 0, MODULATION = EDGE, TARGET = 2 * EDGE, ENDS = 3 * EDGE };
enum { MEAN = 0, MAXIMUM = EDGE, DIAGONAL = 2 * EDGE, FACTOR = 3 * EDGE, HEARD = 4 * EDGE };
enum { CHUNK = 8 };  // models whose gradients are summed in one room, in their order, whichever thread it is

// All widths are those of whole vectors: EDGE, PRODUCT and `width` (of nodes), with zeros beyond what is real.
typedef struct {
    int64_t models, nodes, channels, layers, width, node_classes, edge_classes, real_inputs;
    int64_t fixed_edges_stride, absent_stride, degree_stride;  // 0 where all models have the same
    const REAL *edges, *values;                  // (models, node, node, channel) and (models, node, channel)
    const REAL *fixed_edges;                     // (models or 1, node, node, EDGE)
    const REAL *fixed_nodes;                     // (node, width)
    const REAL *absent;                          // (models or 1, node, node), 0 or far below 0
    const REAL *degree;                          // (models or 1, node)
    const REAL *hidden, *input, *factor;         // (node), 0 or 1
    const int32_t *node_class, *edge_class;      // (node) and (node, node), -1: none
    const REAL *node_shares, *edge_shares;       // (class), one over how many there are
    const REAL *real;                            // (width + HEARD), 1 where an input of the nodes' network is real
    const REAL *weights;                         // of first states, then layer by layer
    REAL *pooled_nodes, *pooled_edges;           // (models, class, 2, width or EDGE): means of values and of squares
    REAL *kept_edges, *kept_states, *kept_heard; // by layer, for the way back; null where there is none
    Bits *kept_bits;
    const REAL *pooled_nodes_gradient, *pooled_edges_gradient;
    REAL *weights_gradient;                      // (chunk, weights)
    REAL *fixed_edges_gradient;                  // (chunk or models, node, node, EDGE)
    REAL *fixed_nodes_gradient;                  // (chunk, node, width)
} Stack;

// Where the weights of a layer begin: matrices are (from, to).
typedef struct {
    int64_t mix, product, ends, ends_bias, context, scale, shift, first, first_bias, second, second_bias, all;
} Places;

static Places places(const Stack *s) {
    int64_t width = s->width, inputs = width + HEARD;
    Places p = {0};
    p.product = p.mix + EDGE * MIXED;
    p.ends = p.product + PRODUCT * EDGE;
    p.ends_bias = p.ends + width * ENDS;
    p.context = p.ends_bias + ENDS;
    p.scale = p.context + width * width;
    p.shift = p.scale + inputs;
    p.first = p.shift + inputs;
    p.first_bias = p.first + inputs * width;
    p.second = p.first_bias + width;
    p.second_bias = p.second + width * width;
    p.all = p.second_bias + width;
    return p;
}

// The same of what the way back multiplies by: matrices as (to, from), that of products with rows of SPAN at least.
static Places transposed_places(const Stack *s) {
    int64_t width = s->width;
    Places p = {0};
    p.product = p.mix + EDGE * MIXED;
    p.ends = p.product + SPAN * EDGE;
    p.context = p.ends + width * ENDS;
    p.first = p.context + width * width;
    p.second = p.first + (width + HEARD) * width;
    p.all = p.second + width * width;
    return p;
}

// Weights of first states: (channel, EDGE) of a connection, of its opposite, and (channel, width) of nodes.
static int64_t first_size(const Stack *s) { return s->channels * (2 * EDGE + s->width); }

// Packed rows of a field of products: nodes up to a whole number of vectors.
static int64_t packed_row(const Stack *s) { return (s->nodes * PRODUCT + SPAN - 1) / SPAN * SPAN; }

// What one thread needs beside: fields of one model, made anew for each.
typedef struct {
    REAL *e, *x, *heard, *mixed, *right, *turned, *product, *dproduct, *dleft, *dright;
    REAL *ends, *dends, *normal, *middle, *active, *dactive, *dnormal, *dx, *de, *context, *rstd, *row, *transposed;
} Room;

typedef struct {
    REAL *start;
    int64_t used;
} Memory;

static REAL *taken(Memory *memory, int64_t count) {
    REAL *at = memory->start ? memory->start + memory->used : memory->start;
    memory->used += (count + 15) / 16 * 16;
    return at;
}

// The room laid out from an address on (null: to know how large it is).
static int64_t laid_out(const Stack *s, REAL *start, Room *room) {
    int64_t n = s->nodes, pairs = n * n, width = s->width, inputs = width + HEARD, packed = n * packed_row(s);
    Memory m = {start, 0};
    room->e = taken(&m, pairs * EDGE), room->x = taken(&m, n * width), room->heard = taken(&m, n * HEARD);
    room->mixed = taken(&m, pairs * MIXED);
    room->right = taken(&m, packed), room->turned = taken(&m, packed), room->product = taken(&m, packed);
    room->dproduct = taken(&m, packed), room->dleft = taken(&m, packed), room->dright = taken(&m, packed);
    room->ends = taken(&m, n * ENDS), room->dends = taken(&m, n * ENDS);
    room->normal = taken(&m, n * inputs), room->dnormal = taken(&m, n * inputs);
    room->middle = taken(&m, n * width), room->active = taken(&m, n * width);
    room->dactive = taken(&m, n * width), room->dx = taken(&m, n * width), room->de = taken(&m, pairs * EDGE);
    room->context = taken(&m, 3 * width), room->rstd = taken(&m, n), room->row = taken(&m, (n + 1) * SPAN);
    room->transposed = taken(&m, s->layers * transposed_places(s).all);
    return m.used;
}

int64_t room_size(const Stack *s) {
    Room room;
    return laid_out(s, (REAL *)0, &room);
}

static void fill_rows(REAL *out, const REAL *row, int64_t rows, int64_t size) {
    for (int64_t i = 0; i < rows; i++) memcpy(out + i * size, row, size * sizeof(REAL));
}

// out (rows, to) = [+] left (rows, from) times weights (from, to)
static void linear(const REAL *left, int64_t rows, int64_t from, const REAL *weights, int64_t to, REAL *out, int add) {
    multiply((Product){left, from, 1, weights, to, out, to, rows, from, to, add});
}

// out (from, to) += left (rows, from) turned, times right (rows, to)
static void add_outer(const REAL *left, int64_t rows, int64_t from, const REAL *right, int64_t to, REAL *out) {
    multiply((Product){left, 1, from, right, to, out, to, from, rows, to, 1});
}

// The same of edges, target by target, so that no sum has too many terms for its last bits.
static void add_outer_of_edges(const REAL *left, int64_t n, int64_t from, const REAL *right, int64_t to, REAL *out) {
    for (int64_t i = 0; i < n; i++) add_outer(left + i * n * from, n, from, right + i * n * to, to, out);
}

static void add_sums(const REAL *values, int64_t rows, int64_t size, REAL *out) {
    for (int64_t i = 0; i < rows; i++)
        for (int64_t c = 0; c < size; c += WIDTH) store(out + c, load(out + c) + load(values + i * size + c));
}
