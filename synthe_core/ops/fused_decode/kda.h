// One token through kda, a delta memory whose decays are of each key channel: layers/kda.py.
#pragma once

#include "linear_memory.h"
#include "maps.h"

typedef struct {
    convolution conv;                       // of queries, keys and values; no weight: none
    const float *unit, *norm;               // [key], [value]
    const float *rate, *dt_bias, *gate_bias;  // exp(A_log) [groups], [groups key], [groups value] or NULL
    double low, high, floor, key_eps, norm_eps;  // of beta; floor: of a decay's logarithm, 0: none
    int64_t heads, groups, key, value, rank;
} kda_rule;

// y = M' q after M' = D M + beta k (v - D M k)', D = Diag(g). M [key, value].
static void remember_each(const float *q, const float *k, const float *v, float beta, const float *g, int64_t key,
                          int64_t value, const float *before, float *after, float *y) {
    for (int64_t c = 0; c < value; c += LANES) {
        int64_t left = value - c;
        lanes recalled = fill(0), read = fill(0);
        for (int64_t i = 0; i < key; i++)
            recalled = fma8(get_lanes(before + i * value + c, left), fill(k[i] * g[i]), recalled);
        lanes target = fma8(recalled, fill(-1), get_lanes(v + c, left));
        for (int64_t i = 0; i < key; i++) {
            lanes row = times(get_lanes(before + i * value + c, left), fill(g[i]));
            row = fma8(target, fill(beta * k[i]), row);
            put_lanes(after + i * value + c, row, left);
            read = fma8(row, fill(q[i]), read);
        }
        put_lanes(y + c, read, left);
    }
}

// Decays of logits, in place.
static void kda_decays(const kda_rule *own, float *logits) {
    for (int64_t h = 0; h < own->groups; h++, logits += own->key) {
        const float *bias = own->dt_bias + h * own->key;
        float rate = own->rate[h], floor = (float)own->floor;
        for (int64_t i = 0; i < own->key; i++) {
            float logit = logits[i] + bias[i];
            logits[i] = exp_float(floor < 0 ? floor * sigmoid(rate * logit) : -rate * softplus(logit));
        }
    }
}

// features: queries, keys, values, numbers of the decays and the gates, betas.
static void kda_row(const kda_rule *own, float *features, float *decays, float *gates, const float *memory,
                    const float *inputs, float *memory_after, float *inputs_after, float *y) {
    int64_t K = own->key, V = own->value, keys = own->heads * K, rep = own->groups / own->heads;
    float *q = features, *k = q + keys, *v = k + keys, *beta = v + own->groups * V + 2 * own->rank;
    convolve_row(&own->conv, 2 * keys + own->groups * V, 1, features, inputs, inputs_after);
    for (int64_t h = 0; h < 2 * own->heads; h++) norm_row(q + h * K, own->unit, own->key_eps, K, q + h * K);
    kda_decays(own, decays);
    for (int64_t h = 0; h < own->groups; h++) {
        float strength = (float)own->low + (float)(own->high - own->low) * sigmoid(beta[h]), *o = y + h * V;
        remember_each(q + h / rep * K, k + h / rep * K, v + h * V, strength, decays + h * K, K, V, memory + h * K * V,
                      memory_after + h * K * V, o);
        norm_row(o, own->norm, own->norm_eps, V, o);
        for (int64_t c = 0; own->gate_bias && c < V; c++) gates[h * V + c] += own->gate_bias[h * V + c];
        gate_row(o, gates + h * V, V, 0);
    }
}

// maps: of the numbers of decays to these, and of the gates. room: for both outputs; y: for their inputs at first.
static void kda(const kda_rule *own, const linear *maps, float *features, int64_t stride, int64_t rows,
                const int64_t *adapters, const float *const *before, float *const *after, int in_order, float *room,
                float *y, scratch *scratch) {
    int64_t K = own->key, V = own->value, channels = 2 * own->heads * K + own->groups * V, n = own->groups * V;
    int64_t inputs = (own->conv.taps - 1) * channels, memory = own->groups * K * V;
    float *decays = room, *gates = decays + rows * maps[0].outputs, *numbers = gates + rows * n;
    for (int m = 0; m < 2; m++) {
        for (int64_t r = 0; r < rows; r++)
            memcpy(numbers + r * own->rank, features + r * stride + channels + m * own->rank,
                   (size_t)own->rank * sizeof(float));
        apply(maps + m, numbers, rows, adapters, m ? gates : decays, scratch);
    }
#pragma omp parallel for schedule(static) if (rows > 1 && !in_order)
    for (int64_t r = 0; r < rows; r++)
        kda_row(own, features + r * stride, decays + r * maps[0].outputs, gates + r * n, before[0] + r * memory,
                before[1] + r * inputs, after[0] + r * memory, after[1] + r * inputs, y + r * n);
}
