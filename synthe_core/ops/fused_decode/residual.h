// What a step does to the stream: its norms, and x = skip x + scale f(norm(x)).
#pragma once

#include "recurrent.h"

enum { NO_NORM = 0, RMS_NORM = 1, LAYER_NORM = 2 };

typedef struct {
    const float *weight, *bias;  // [width] each, or NULL
    double eps;
    int64_t kind;
} norm;

typedef struct {
    norm before, after;  // of what the learner reads, of what it adds
    // reads_same: what the step before it reads, of which `saves` is said; shares_norm: the normalised stream of that
    // step too; onto_normed: its output is added to what it reads, normalised.
    int64_t saves, reads_same, shares_norm, onto_normed;
    double input_scale, scale, skip;
} residual;

static void layer_norm_row(const float *x, const float *weight, const float *bias, double eps, int64_t n, float *y) {
    double mean = 0, square = 0;
    for (int64_t i = 0; i < n; i++) mean += x[i];
    mean /= (double)n;
    for (int64_t i = 0; i < n; i++) square += (x[i] - mean) * (x[i] - mean);
    double scale = 1 / sqrt(square / (double)n + eps);
    for (int64_t i = 0; i < n; i++)
        y[i] = (float)((x[i] - mean) * scale) * (weight ? weight[i] : 1.0f) + (bias ? bias[i] : 0.0f);
}

// x and y may be the same.
static void norm_rows(const norm *own, const float *x, int64_t rows, int64_t width, float *y) {
    for (int64_t r = 0; r < rows; r++, x += width, y += width) {
        if (own->kind == RMS_NORM) norm_row(x, own->weight, own->eps, width, y);
        else if (own->kind == LAYER_NORM) layer_norm_row(x, own->weight, own->bias, own->eps, width, y);
        else if (x != y) memcpy(y, x, (size_t)width * sizeof(float));
    }
}

// What the learner reads: of the stream x, or of `stream`, which was saved; in `normed`, or in `scaled`.
static const float *read_stream(const residual *own, const float *x, float *stream, int64_t rows, int64_t width,
                                float *normed, float *scaled) {
    if (own->saves) memcpy(stream, x, (size_t)(rows * width) * sizeof(float));
    if (!own->shares_norm) norm_rows(&own->before, own->reads_same ? stream : x, rows, width, normed);
    if (own->input_scale == 1) return normed;
    for (int64_t i = 0; i < rows * width; i++) scaled[i] = normed[i] * (float)own->input_scale;
    return scaled;
}

static void add_to_stream(const residual *own, const float *normed, float *y, int64_t rows, int64_t width, float *x) {
    const float *base = own->onto_normed ? normed : x;
    norm_rows(&own->after, y, rows, width, y);
    for (int64_t i = 0; i < rows * width; i++) x[i] = (float)own->skip * base[i] + (float)own->scale * y[i];
}
