// One token through memories that fade and add, M' = g M + k v': layers/gla.py, mlstm.py and mamba2.py.
#pragma once

#include "recurrent.h"
#include "residual.h"

typedef struct {
    convolution conv;  // of queries, keys and values; no weight: none
    const float *norm;                     // [value]
    double temperature, floor, norm_eps;   // floor: of a decay's logarithm
    int64_t heads, groups, key, value, is_gated;
} gla_rule;

typedef struct {
    convolution conv;                      // of queries and keys; no weight: none
    const float *norm;                     // [value], or [heads, value] of a layer norm
    const float *input_bias, *forget_bias; // [heads]
    double cap, norm_eps;                  // cap: 0: no bound
    int64_t heads, key, value, is_exponential, is_layer_norm, gate;
} mlstm_rule;

typedef struct {
    convolution conv;            // of values, B and C
    const float *scale;          // [all features], or NULL
    const float *dt_bias, *rate; // [heads]; rate: exp(A_log)
    const float *skip, *norm;    // [heads], [channels]; no norm: NULL
    double low, high, norm_eps;  // of a step
    int64_t heads, groups, size, head_size, norm_groups, is_normed_first;
} mamba2_rule;

// after = g before + k (w v)', y = after' q, M [key, value] with `stride` numbers a row. g of each key, or keep of all.
static void fade_and_write(const float *q, const float *k, const float *v, const float *g, float keep, float w,
                           int64_t key, int64_t value, int64_t stride, const float *before, float *after, float *y) {
    for (int64_t c = 0; c < value; c += LANES) {
        int64_t left = value - c;
        lanes written = times(get_lanes(v + c, left), fill(w)), read = fill(0);
        for (int64_t i = 0; i < key; i++) {
            lanes row = times(get_lanes(before + i * stride + c, left), fill(g ? g[i] : keep));
            row = fma8(written, fill(k[i]), row);
            put_lanes(after + i * stride + c, row, left);
            read = fma8(row, fill(q[i]), read);
        }
        put_lanes(y + c, read, left);
    }
}

static void gate_row(float *y, const float *z, int64_t n, int with_silu) {
    for (int64_t i = 0; i < n; i++) y[i] *= sigmoid(z[i]) * (with_silu ? z[i] : 1);
}

// logsigmoid(x) = -softplus(-x). features: queries, keys, values, gates if there are some, the numbers of the second map;
// logits [groups key]: of the decays, in place.
static void gla_row(const gla_rule *own, float *features, float *logits, const float *memory, const float *inputs,
                    float *memory_after, float *inputs_after, float *y) {
    int64_t queries = own->heads * own->key, keys = own->groups * own->key, values = own->groups * own->value;
    int64_t rep = own->heads / own->groups, size = own->key * own->value;
    float *q = features, *k = q + queries, *v = k + keys, *gate = v + values;
    if (own->conv.weight) convolve_row(&own->conv, queries + keys + values, 1, features, inputs, inputs_after);
    for (int64_t i = 0; i < keys; i++) {
        float log_decay = -softplus(-logits[i]) / (float)own->temperature;
        logits[i] = exp_float(log_decay < (float)own->floor ? (float)own->floor : log_decay);
    }
    for (int64_t h = 0; h < own->heads; h++) {
        int64_t g = h / rep;
        float *o = y + h * own->value;
        fade_and_write(q + h * own->key, k + g * own->key, v + g * own->value, logits + g * own->key, 0, 1, own->key,
                       own->value, own->value, memory + h * size, memory_after + h * size, o);
        norm_row(o, own->norm, own->norm_eps, own->value, o);
        if (own->is_gated) gate_row(o, gate + h * own->value, own->value, 1);
    }
}

static float capped(float logit, double cap) { return cap > 0 ? (float)cap * tanhf(logit / (float)cap) : logit; }

// features: queries, keys, values, output gates, one input and one forget logit a head. scales [heads].
static void mlstm_row(const mlstm_rule *own, float *features, const float *memory, const float *scales,
                      const float *inputs, float *memory_after, float *scales_after, float *inputs_after, float *y) {
    int64_t K = own->key, V = own->value, stride = V + 1;
    float *q = features, *k = q + own->heads * K, *v = k + own->heads * K, *gate = v + own->heads * V;
    const float *write = gate + own->heads * V, *keep = write + own->heads;
    float shift = (float)(0.5 * log((double)K));
    if (own->conv.weight) convolve_row(&own->conv, 2 * own->heads * K, 1, features, inputs, inputs_after);
    for (int64_t h = 0; h < own->heads; h++, q += K, k += K, v += V, gate += V, y += V) {
        float in = capped(write[h] + own->input_bias[h], own->cap) - shift;
        float forget = capped(keep[h] + own->forget_bias[h], own->cap);
        float old = (own->is_exponential ? forget : -softplus(-forget)) + scales[h];
        float m = old > in || old != old ? old : in, g = exp_float(old - m), w = exp_float(in - m), total = 0;
        const float *before = memory + h * K * stride;
        float *after = memory_after + h * K * stride;
        scales_after[h] = m;
        fade_and_write(q, k, v, NULL, g, w, K, V, stride, before, after, y);
        for (int64_t i = 0; i < K; i++) {
            float each = after[i * stride + V] = g * before[i * stride + V] + w * k[i];
            total += each * q[i];
        }
        float bound = exp_float(-(m < -79.85f ? -79.85f : m > 31.88f ? 31.88f : m));
        float divisor = fabsf(total) < bound ? bound : fabsf(total);
        for (int64_t c = 0; c < V; c++) y[c] /= divisor;
        if (own->is_layer_norm) layer_norm_row(y, own->norm + h * V, NULL, own->norm_eps, V, y);
        else norm_row(y, own->norm, own->norm_eps, V, y);
        gate_row(y, gate, V, own->gate == SILU_GATE);
    }
}

// features: gates, values [channels each], B, C [groups size each], a logit of the step a head.
static void mamba2_row(const mamba2_rule *own, float *features, const float *memory, const float *inputs,
                       float *memory_after, float *inputs_after, float *y) {
    int64_t P = own->head_size, N = own->size, channels = own->heads * P, shared = own->groups * N;
    int64_t rep = own->heads / own->groups, part = channels / own->norm_groups;
    float *z = features, *u = z + channels, *B = u + channels, *C = B + shared, *dt = C + shared;
    if (own->scale)
        for (int64_t i = 0; i < 2 * channels + 2 * shared + own->heads; i++) features[i] *= own->scale[i];
    convolve_row(&own->conv, channels + 2 * shared, 1, u, inputs, inputs_after);
    for (int64_t h = 0; h < own->heads; h++) {
        float delta = softplus(dt[h] + own->dt_bias[h]);
        delta = delta < (float)own->low ? (float)own->low : delta > (float)own->high ? (float)own->high : delta;
        float *o = y + h * P;
        fade_and_write(C + h / rep * N, B + h / rep * N, u + h * P, NULL, exp_float(-own->rate[h] * delta), delta, N, P,
                       P, memory + h * N * P, memory_after + h * N * P, o);
        for (int64_t c = 0; c < P; c++) o[c] += own->skip[h] * u[h * P + c];
    }
    if (!own->norm || !own->is_normed_first) gate_row(y, z, channels, 1);
    for (int64_t g = 0; own->norm && g < own->norm_groups; g++)
        norm_row(y + g * part, own->norm + g * part, own->norm_eps, part, y + g * part);
    if (own->norm && own->is_normed_first) gate_row(y, z, channels, 1);
}
