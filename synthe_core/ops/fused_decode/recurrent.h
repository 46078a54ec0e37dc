// One token through learners whose state has a fixed size; the state after it is written beside the one before.
// Their equations: layers/momentum.py, kalman.py and delta.py.
#pragma once

#include "../lanes.h"

#include "../exponential.h"

static inline float sigmoid(float x) { return 1 / (1 + exp_float(-x)); }

// log(1 + e^x) = max(x, 0) + log(1 + y), y = e^-|x|, the latter by the series of 2 artanh(y / (2 + y)) within 2e-8.
static inline float softplus(float x) {
    float y = exp_float(-fabsf(x)), s = y / (2 + y), q = s * s;
    float series = 1 + q * (1 / 3.0f + q * (1 / 5.0f + q * (1 / 7.0f + q * (1 / 9.0f + q * (1 / 11.0f + q / 13)))));
    return (x > 0 ? x : 0) + 2 * s * series + (x - x);  // the last: NaN of NaN
}

static void norm_row(const float *x, const float *weight, double eps, int64_t n, float *y) {
    float part[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int l = 0; l < LANES; l++) part[l] += x[i + l] * x[i + l];
    for (int l = 0; i + l < n; l++) part[l] += x[i + l] * x[i + l];
    double sum = 0;
    for (int l = 0; l < LANES; l++) sum += (double)part[l];
    float scale = (float)(1 / sqrt(sum / (double)n + eps));
    for (i = 0; i < n; i++) y[i] = x[i] * scale * (weight ? weight[i] : 1.0f);
}

// features: decays, values and, with a gate, gates [n each]. y: the average, gated.
static void momentum_row(const float *features, int64_t n, int gated, const float *bias, const float *restrict before,
                         float *restrict after, float *restrict y) {
    const float *value = features + n, *gate = value + n;
    for (int64_t i = 0; i < n; i++) {
        float logit = features[i] + bias[i];
        y[i] = after[i] = sigmoid(logit) * before[i] + sigmoid(-logit) * value[i];
    }
    if (gated)
        for (int64_t i = 0; i < n; i++) y[i] *= gate[i] * sigmoid(gate[i]);
}

typedef struct {
    const float *transition, *process, *noise_bias;
} filter;

// features: observations, noises; gates [n each]. signals: surprise and confidence.
static void kalman_row(const filter *own, const float *features, const float *gate, int64_t n, const float *mean,
                       const float *variance, float *mean_after, float *variance_after, float *y, float *signals) {
    double surprise = 0, confidence = 0;
    for (int64_t i = 0; i < n; i++) {
        float a = own->transition[i], noise = softplus(features[n + i] + own->noise_bias[i]);
        float prior = a * a * variance[i] + own->process[i], all = prior + noise, gain = prior / all;
        float innovation = features[i] - a * mean[i];
        mean_after[i] = a * mean[i] + gain * innovation;
        variance_after[i] = noise * gain;
        y[i] = mean_after[i] * (gate[i] * sigmoid(gate[i]));
        surprise += (double)(innovation * innovation / all);
        confidence += (double)(noise / all);
    }
    signals[0] = (float)(surprise / (double)n);
    signals[1] = (float)(confidence / (double)n);
}

enum { NO_GATE = 0, SILU_GATE = 1, SIGMOID_GATE = 2 };

typedef struct {
    const float *weight, *bias;  // [taps, channels], [channels] or NULL; no weight: only silu
    int64_t taps;
} convolution;

typedef struct {
    convolution conv;
    const float *unit;                    // [key]
    const float *rate, *rate_bias;        // [value_heads]: exp(A_log), dt_bias; NULL: no decay
    const float *norm;                    // [value]
    double low, high, key_eps, norm_eps;  // of beta, and of the two norms
    int64_t heads, value_heads, key, value, gate, overwrites;
} memory_rule;

enum { CHANNELS = 64 };  // of a convolution, at once

// x [channels] in place: the sum over the last inputs, which `after` is given, or its silu.
static void convolve_row(const convolution *own, int64_t channels, int with_silu, float *x, const float *before, float *after) {
    int64_t past = own->taps - 1;
    if (past) {
        memcpy(after, before + channels, (size_t)((past - 1) * channels) * sizeof(float));
        memcpy(after + (past - 1) * channels, x, (size_t)channels * sizeof(float));
    }
    for (int64_t from = 0; from < channels; from += CHANNELS) {
        int64_t count = channels - from < CHANNELS ? channels - from : CHANNELS;
        float sum[CHANNELS];
        for (int64_t c = 0; c < count; c++) sum[c] = own->bias ? own->bias[from + c] : 0;
        for (int64_t j = 0; j < past; j++)
            for (int64_t c = 0; c < count; c++)
                sum[c] += own->weight[j * channels + from + c] * before[j * channels + from + c];
        for (int64_t c = 0; c < count; c++) {
            float now = x[from + c];
            sum[c] = own->weight ? sum[c] + own->weight[past * channels + from + c] * now : now;
            x[from + c] = with_silu ? sum[c] * sigmoid(sum[c]) : sum[c];
        }
    }
}

// y = M' q after M' = g M + beta k (v - k g M), or g M + beta k v where nothing is overwritten. M [key, value].
static void remember(const float *q, const float *k, const float *v, float beta, float g, int overwrites, int64_t key,
                     int64_t value, const float *before, float *after, float *y) {
    for (int64_t c = 0; c < value; c += LANES) {
        int64_t left = value - c;
        lanes target = get_lanes(v + c, left), read = fill(0);
        if (overwrites) {
            lanes recalled = fill(0);
            for (int64_t i = 0; i < key; i++)
                recalled = fma8(get_lanes(before + i * value + c, left), fill(k[i]), recalled);
            target = fma8(recalled, fill(-g), target);
        }
        for (int64_t i = 0; i < key; i++) {
            lanes row = times(get_lanes(before + i * value + c, left), fill(g));
            row = fma8(target, fill(beta * k[i]), row);
            put_lanes(after + i * value + c, row, left);
            read = fma8(row, fill(q[i]), read);
        }
        put_lanes(y + c, read, left);
    }
}

// features: queries, keys [heads key each], values, gates if there is one [value_heads value each], betas, decays.
static void delta_row(const memory_rule *own, float *features, const float *memory, const float *inputs,
                      float *memory_after, float *inputs_after, float *y) {
    int64_t keys = own->heads * own->key, values = own->value_heads * own->value, rep = own->value_heads / own->heads;
    float *q = features, *k = q + keys, *v = k + keys, *gate = v + values, *beta = own->gate ? gate + values : gate;
    convolve_row(&own->conv, 2 * keys + values, 1, features, inputs, inputs_after);
    for (int64_t h = 0; h < 2 * own->heads; h++) norm_row(q + h * own->key, own->unit, own->key_eps, own->key, q + h * own->key);
    for (int64_t h = 0; h < own->value_heads; h++) {
        int64_t at = h * own->key * own->value;
        float *o = y + h * own->value, *z = gate + h * own->value;
        float strength = (float)own->low + (float)(own->high - own->low) * sigmoid(beta[h]), decay = 1;
        if (own->rate) decay = exp_float(-own->rate[h] * softplus(beta[own->value_heads + h] + own->rate_bias[h]));
        remember(q + h / rep * own->key, k + h / rep * own->key, v + h * own->value, strength, decay,
                 (int)own->overwrites, own->key, own->value, memory + at, memory_after + at, o);
        norm_row(o, own->norm, own->norm_eps, own->value, o);
        if (own->gate)
            for (int64_t c = 0; c < own->value; c++) o[c] *= sigmoid(z[c]) * (own->gate == SILU_GATE ? z[c] : 1);
    }
}

// features: what goes in, what comes out, values [n each]: y = out conv(in value).
static void gated_conv_row(const convolution *own, float *features, int64_t n, const float *before, float *after,
                           float *y) {
    float *in = features, *out = in + n, *value = out + n;
    for (int64_t i = 0; i < n; i++) value[i] *= in[i];
    convolve_row(own, n, 0, value, before, after);
    for (int64_t i = 0; i < n; i++) y[i] = out[i] * value[i];
}
