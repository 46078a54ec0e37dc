// One token of each row through a mixture of experts: layers/experts.py and routing.py.
#pragma once

#include "activate.h"
#include "maps.h"
#include "recurrent.h"

typedef struct {
    linear in, out, gate;  // gate [1, width]: of its output; no outputs: none
} shared_expert;

typedef struct {
    const float *bias;  // [experts]: of the choice, or NULL
    double scale;       // of the weights
    int64_t experts, top, groups, top_groups, hidden, activation, is_gated, is_sigmoid, is_normalized;
    const shared_expert *shared;  // NULL: none
    int64_t room;                 // numbers a row beside the logits
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

// Of the groups with the smallest sums of their two largest values, all values become -infinity.
static void choose_groups(const expert_rule *own, float *values) {
    int64_t each = own->experts / own->groups;
    float sums[own->groups];
    for (int64_t g = 0; g < own->groups; g++) {
        float first = -INFINITY, second = -INFINITY;
        for (int64_t e = g * each; e < (g + 1) * each; e++) {
            if (values[e] > first) second = first, first = values[e];
            else if (values[e] > second) second = values[e];
        }
        sums[g] = first + second;
    }
    for (int64_t n = own->top_groups; n < own->groups; n++) {
        int64_t least = -1;
        for (int64_t g = 0; g < own->groups; g++)
            if (sums[g] != INFINITY && (least < 0 || !(sums[g] >= sums[least]))) least = g;
        if (least < 0) return;
        sums[least] = INFINITY;
        for (int64_t e = least * each; e < (least + 1) * each; e++) values[e] = -INFINITY;
    }
}

// The experts of largest score and the weights of their outputs.
static void choose(const expert_rule *own, const float *logits, int64_t *chosen, float *weights) {
    float most = logits[0], total = 0, sum = 0, values[own->experts];
    for (int64_t e = 1; e < own->experts; e++) most = logits[e] > most ? logits[e] : most;
    for (int64_t e = 0; e < own->experts; e++) total += exp_float(logits[e] - most);
    int by_score = own->bias || own->groups > 1;
    for (int64_t e = 0; e < own->experts; e++)
        values[e] = by_score ? score(own, logits, e, most, total) + (own->bias ? own->bias[e] : 0) : logits[e];
    if (own->groups > 1) choose_groups(own, values);
    for (int64_t k = 0; k < own->top; k++) {
        int64_t best = -1;
        for (int64_t e = 0; e < own->experts; e++) {
            int is_taken = 0;
            for (int64_t j = 0; j < k; j++) is_taken |= chosen[j] == e;
            if (!is_taken && (best < 0 || values[e] > values[best])) best = e;
        }
        chosen[k] = best;
        weights[k] = score(own, logits, best, most, total);
        sum += weights[k];
    }
    for (int64_t k = 0; k < own->top; k++)
        weights[k] = (own->is_normalized ? weights[k] / (sum + 1e-20f) : weights[k]) * (float)own->scale;
}

static void activate_rows(const expert_rule *own, float *x, int64_t rows, int64_t stride, int64_t hidden, float *y) {
    for (int64_t r = 0; r < rows; r++, x += stride, y += hidden) {
        activate(own->activation, x, 1, hidden, y);
        for (int64_t h = 0; own->is_gated && h < hidden; h++) y[h] *= x[hidden + h];
    }
}

// y += g S(x) of the expert that every row uses.
static void add_shared(const expert_rule *own, const float *x, int64_t rows, const int64_t *adapters, float *room, float *y,
                       scratch *scratch) {
    const shared_expert *shared = own->shared;
    int64_t hidden = shared->out.inputs, width = shared->out.outputs;
    float *inner = room + rows * shared->in.outputs, *output = inner + rows * hidden, *gate = output + rows * width;
    apply(&shared->in, x, rows, adapters, room, scratch);
    activate_rows(own, room, rows, shared->in.outputs, hidden, inner);
    apply(&shared->out, inner, rows, adapters, output, scratch);
    if (shared->gate.outputs) apply(&shared->gate, x, rows, adapters, gate, scratch);
    for (int64_t r = 0; r < rows; r++) {
        float g = shared->gate.outputs ? sigmoid(gate[r]) : 1;
        for (int64_t o = 0; o < width; o++) y[r * width + o] += g * output[r * width + o];
    }
}

// y [rows, width] of x. logits [rows, experts].
static void experts(const expert_rule *own, const linear *in, const linear *out, const float *x, const float *logits,
                    int64_t rows, const int64_t *adapters, float *room, float *y, scratch *scratch) {
    const float *all = x;
    float *target = y;
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
            activate_rows(own, room, 1, inner, own->hidden, room);
            if (!down.weight) quantize_rows(room, 1, own->hidden, scratch);
            multiply(&down, room, 1, own->hidden, output, width, scratch, NULL, 0);
            for (int64_t o = 0; o < width; o++) y[o] += weights[k] * output[o];
        }
    }
    if (own->shared) add_shared(own, all, rows, adapters, room, target, scratch);
}
