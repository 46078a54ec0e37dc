// One token of each row through a mixture of experts: layers/experts.py and routing.py.
#pragma once

#include "activate.h"
#include "maps.h"
#include "recurrent.h"

typedef struct {
    const float *bias;  // [experts]: of the choice, or NULL
    double scale;       // of the weights
    int64_t experts, top, hidden, activation, is_gated, is_sigmoid, is_normalized;
} expert_rule;

// Some rows and columns of a part: whole groups and blocks of a packed one.
static part part_within(const part *whole, int64_t first, int64_t rows, int64_t column, int64_t columns) {
    part own = *whole;
    matrix *m = &own.packed;
    m->outputs = rows;
    if (own.weight) {
        int64_t size = own.stored == FLOAT32 ? sizeof(float) : sizeof(bfloat16);
        own.weight = (const char *)own.weight + (first * m->apart + column) * size;
        return own;
    }
    int64_t block = first / LANES * m->apart + column / BLOCK;
    m->codes += block * BLOCK * m->bits;
    m->scales += block * m->parts * LANES;
    if (m->offsets) m->offsets += block * LANES;
    m->blocks = (columns + BLOCK - 1) / BLOCK;
    return own;
}

static float score(const expert_rule *own, const float *logits, int64_t e, float most, float total) {
    return own->is_sigmoid ? sigmoid(logits[e]) : exp_float(logits[e] - most) / total;
}

// The experts of largest score and the weights of their outputs.
static void choose(const expert_rule *own, const float *logits, int64_t *chosen, float *weights) {
    float most = logits[0], total = 0, sum = 0;
    for (int64_t e = 1; e < own->experts; e++) most = logits[e] > most ? logits[e] : most;
    for (int64_t e = 0; e < own->experts; e++) total += exp_float(logits[e] - most);
    for (int64_t k = 0; k < own->top; k++) {
        int64_t best = -1;
        float largest = 0;
        for (int64_t e = 0; e < own->experts; e++) {
            int is_taken = 0;
            for (int64_t j = 0; j < k; j++) is_taken |= chosen[j] == e;
            float value = own->bias ? score(own, logits, e, most, total) + own->bias[e] : logits[e];
            if (!is_taken && (best < 0 || value > largest)) best = e, largest = value;
        }
        chosen[k] = best;
        weights[k] = score(own, logits, best, most, total);
        sum += weights[k];
    }
    for (int64_t k = 0; k < own->top; k++)
        weights[k] = (own->is_normalized ? weights[k] / (sum + 1e-20f) : weights[k]) * (float)own->scale;
}

// y [rows, width] of x. logits [rows, experts]; room: for an expert's inner numbers and its output.
static void experts(const expert_rule *own, const linear *in, const linear *out, const float *x, const float *logits,
                    int64_t rows, float *room, float *y, scratch *scratch) {
    int64_t width = out->outputs, inner = own->is_gated ? 2 * own->hidden : own->hidden;
    float *output = room + inner;
    for (int64_t r = 0; r < rows; r++, x += in->inputs, logits += own->experts, y += width) {
        int64_t chosen[own->top];
        float weights[own->top];
        choose(own, logits, chosen, weights);
        memset(y, 0, (size_t)width * sizeof(float));
        for (int64_t k = 0; k < own->top; k++) {
            part up = part_within(in->parts, chosen[k] * inner, inner, 0, in->inputs);
            part down = part_within(out->parts, 0, width, chosen[k] * own->hidden, own->hidden);
            if (!up.weight) quantize_rows(x, 1, in->inputs, scratch);
            multiply(&up, x, 1, in->inputs, room, inner, scratch, NULL, 0);
            activate(own->activation, room, 1, own->hidden, room);
            if (own->is_gated)
                for (int64_t h = 0; h < own->hidden; h++) room[h] *= room[own->hidden + h];
            if (!down.weight) quantize_rows(room, 1, own->hidden, scratch);
            multiply(&down, room, 1, own->hidden, output, width, scratch, NULL, 0);
            for (int64_t o = 0; o < width; o++) y[o] += weights[k] * output[o];
        }
    }
}
