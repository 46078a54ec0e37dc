// m_t = max(m_{t-1} + step_t, value_t) of [batch, time, heads], token by token.
#include <stdint.h>

#define RUNNING_MAXIMUM(kind)                                                                                          \
    void running_maximum_##kind(const kind *value, const kind *step, const kind *first, kind *m, int64_t batch,        \
                                int64_t time, int64_t heads) {                                                         \
        for (int64_t b = 0; b < batch; b++)                                                                            \
            for (int64_t t = 0; t < time; t++) {                                                                       \
                const int64_t at = (b * time + t) * heads;                                                             \
                const kind *before = t ? m + at - heads : first + b * heads;                                           \
                for (int64_t h = 0; h < heads; h++) {                                                                  \
                    const kind moved = before[h] + step[at + h];                                                       \
                    m[at + h] = moved > value[at + h] || moved != moved ? moved : value[at + h];                       \
                }                                                                                                      \
            }                                                                                                          \
    }
RUNNING_MAXIMUM(float)
RUNNING_MAXIMUM(double)
