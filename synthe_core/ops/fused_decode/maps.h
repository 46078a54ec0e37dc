// Linear maps of rows: matrices one below the other, a bias, and what the rows' adapters add.
#pragma once

#include "../float_linear/float_linear.h"
#include "../low_rank/low_rank.h"
#include "../packed_linear/packed_linear.h"

enum { MOST_PARTS = 4 };

typedef struct {
    matrix packed;       // where `weight` is NULL
    const void *weight;  // [outputs, inputs]
    int64_t stored;      // how: see float_linear.h
} part;

typedef struct {
    part parts[MOST_PARTS];  // one below the other
    int64_t count, inputs, outputs;
    const float *bias;
    const change *changes;  // of each adapter
} linear;

typedef struct {
    float *normed, *features, *inner, *y, *stream, *scaled;
    float *values;  // of a learner that shares them with later ones
    int8_t *codes;
    float *scales, *sums, *narrow;
    int32_t *counts;
    int64_t rank;  // the largest of a change
} scratch;

enum { MOST_FETCHED = 32 };

// The factors of the rows' adapters of a map, which are read after its matrix; of many rows, some.
static int64_t upcoming(const linear *map, const int64_t *adapters, int64_t rows, stretch *later) {
    int64_t count = 0;
    for (int64_t r = 0; map->changes && r < rows && count + 2 <= MOST_FETCHED; r++) {
        const change *each = adapters[r] < 0 || (r && adapters[r] == adapters[r - 1]) ? NULL : map->changes + adapters[r];
        if (!each || !each->a) continue;
        int64_t row = each->rank * (each->is_bfloat16 ? sizeof(bfloat16) : sizeof(float));
        later[count++] = (stretch){each->a, (row * map->inputs + LINE - 1) / LINE};
        later[count++] = (stretch){each->b, (row * map->outputs + LINE - 1) / LINE};
    }
    return count;
}

static void quantize_rows(const float *x, int64_t rows, int64_t columns, scratch *own) {
    int64_t blocks = (columns + BLOCK - 1) / BLOCK;
    for (int64_t r = 0; r < rows; r++)
        quantize_row(x + r * columns, columns, blocks, own->codes + r * blocks * BLOCK, own->scales + r * blocks,
                     own->sums + r * blocks, own->counts + r * blocks * 2);
}

// Of a packed part x is the quantised rows.
static void multiply(const part *each, const float *x, int64_t rows, int64_t columns, float *y, int64_t stride,
                     const scratch *own, const stretch *later, int64_t fetched) {
    input codes = {own->codes, own->scales, own->sums, own->counts};
    const matrix *packed = &each->packed;
    if (each->weight)
        stored_product(each->weight, each->stored, packed->apart, x, rows, columns, packed->outputs, y, stride);
    else product(packed, &codes, rows, y, stride, later, fetched);
}

// adapters: of each row, or -1.
static void apply(const linear *map, const float *x, int64_t rows, const int64_t *adapters, float *y, scratch *own) {
    int64_t first = 0;
    int is_quantized = 0;
    stretch later[MOST_FETCHED];
    int64_t fetched = upcoming(map, adapters, rows, later);
    for (int64_t p = 0; p < map->count; p++) {
        const part *each = map->parts + p;
        if (!each->weight && !is_quantized) quantize_rows(x, rows, map->inputs, own);
        is_quantized |= !each->weight;
        multiply(each, x, rows, map->inputs, y + first, map->outputs, own, later, p ? 0 : fetched);
        first += each->packed.outputs;
    }
    if (map->bias)
        for (int64_t r = 0; r < rows; r++)
            for (int64_t o = 0; o < map->outputs; o++) y[r * map->outputs + o] += map->bias[o];
    if (!map->changes) return;
#pragma omp parallel for schedule(static) if (rows > 1)
    for (int64_t r = 0; r < rows; r++) {
        const change *each = adapters[r] < 0 ? NULL : map->changes + adapters[r];
        if (each && each->a)
            adapt(each, x + r * map->inputs, map->inputs, map->outputs, y + r * map->outputs, own->narrow + r * own->rank);
    }
}
