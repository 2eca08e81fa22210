// The elementwise pieces of a step, one pass over memory each, for fp32 and bf16 rows on a CPU.
//
// Arithmetic is fp32 and rounded once. Rows lie `..._stride` elements apart; channels lie side by side. Each function
// has a plain torch version beside it in Python (`models/fused.py`, `objectives/nll.py`), and a test that holds them
// equal. Compiled at first use by `build.py`; compiled without -ffast-math, because a NaN has to stay one.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "rows.h"

namespace {

// out = add + i g - h i^3 mean(g h) with g = dn * weight; `add` may be null, and may be `out`.
template <typename T>
void rms_norm_backward(const T *dn, int64_t dn_stride, const T *h, int64_t h_stride, const T *weight,
                       const float *inverse, const T *add, int64_t add_stride, T *out, int64_t out_stride, int64_t rows,
                       int64_t width) {
#pragma omp parallel for if (rows * width > SMALL)
    for (int64_t row = 0; row < rows; row++) {
        const T *d = dn + row * dn_stride, *x = h + row * h_stride, *a = add ? add + row * add_stride : nullptr;
        T *y = out + row * out_stride;
        float dot = 0.0f, factor = inverse[row];
#pragma omp simd reduction(+ : dot)
        for (int64_t c = 0; c < width; c++) dot += load(d[c]) * load(weight[c]) * load(x[c]);
        float share = dot * factor * factor * factor / float(width);
        if (a) {
#pragma omp simd
            for (int64_t c = 0; c < width; c++)
                store(y + c, load(a[c]) + load(d[c]) * load(weight[c]) * factor - load(x[c]) * share);
        } else {
#pragma omp simd
            for (int64_t c = 0; c < width; c++)
                store(y + c, load(d[c]) * load(weight[c]) * factor - load(x[c]) * share);
        }
    }
}

template <typename T>
void swiglu_backward(const T *dm, const T *gate, const T *up, T *dgate, int64_t dgate_stride, T *dup,
                     int64_t dup_stride, int64_t rows, int64_t width) {
#pragma omp parallel for if (rows * width > SMALL)
    for (int64_t row = 0; row < rows; row++) {
        const T *d = dm + row * width, *g = gate + row * width, *u = up + row * width;
        T *dg = dgate + row * dgate_stride, *du = dup + row * dup_stride;
#pragma omp simd
        for (int64_t c = 0; c < width; c++) {
            float x = load(g[c]), s = sigmoid(x), grad = load(d[c]);
            store(dg + c, grad * load(u[c]) * s * (1.0f + x * (1.0f - s)));
            store(du + c, grad * x * s);
        }
    }
}

// Of each row its largest logit, the sum of exp(logit - largest), and the nll of its target.
template <typename T>
void nll(const T *logits, const int64_t *targets, float *largest, float *total, float *losses, int64_t rows,
         int64_t width) {
#pragma omp parallel for if (rows * width > SMALL)
    for (int64_t row = 0; row < rows; row++) {
        const T *x = logits + row * width;
        float most = load(x[0]), sum = 0.0f;
#pragma omp simd reduction(max : most)
        for (int64_t c = 0; c < width; c++) most = load(x[c]) > most ? load(x[c]) : most;
#pragma omp simd reduction(+ : sum)
        for (int64_t c = 0; c < width; c++) sum += exponential(load(x[c]) - most);
        largest[row] = most;
        total[row] = sum;
        losses[row] = std::log(sum) - (load(x[targets[row]]) - most);
    }
}

// weights * (softmax - onehot) in the place of the logits.
template <typename T>
void nll_gradient(T *logits, const int64_t *targets, const float *largest, const float *total, const float *weights,
                  int64_t rows, int64_t width) {
#pragma omp parallel for if (rows * width > SMALL)
    for (int64_t row = 0; row < rows; row++) {
        T *x = logits + row * width;
        float most = largest[row], weight = weights[row], factor = weight / total[row];
        float at_target = exponential(load(x[targets[row]]) - most) * factor - weight;
#pragma omp simd
        for (int64_t c = 0; c < width; c++) store(x + c, exponential(load(x[c]) - most) * factor);
        store(x + targets[row], at_target);
    }
}

// out[row] = the sum of x at places[offsets[row]] .. places[offsets[row + 1]], in fp32 and rounded once.
template <typename T>
void sum_rows(const T *x, int64_t x_stride, const int64_t *places, const int64_t *offsets, T *out, int64_t rows,
              int64_t width) {
#pragma omp parallel for if (rows * width > SMALL)
    for (int64_t row = 0; row < rows; row++) {
        const int64_t *place = places + offsets[row], *stop = places + offsets[row + 1];
        T *y = out + row * width;
        if (stop - place == 1) {
            std::memcpy(static_cast<void *>(y), x + *place * x_stride, width * sizeof(T));
            continue;
        }
        thread_local std::vector<float> sums;
        sums.assign(width, 0.0f);
        for (; place < stop; place++) {
            const T *from = x + *place * x_stride;
#pragma omp simd
            for (int64_t c = 0; c < width; c++) sums[c] += load(from[c]);
        }
#pragma omp simd
        for (int64_t c = 0; c < width; c++) store(y + c, sums[c]);
    }
}

// Scores become probabilities in place. A matrix is [queries, length]; its row r belongs to query r mod length, which
// sees the keys up to its own: the queries that share a key-value head stand one after another.
void causal_softmax(float *scores, int64_t matrices, int64_t queries, int64_t length, float scale) {
#pragma omp parallel for if (matrices * queries * length > SMALL)
    for (int64_t row = 0; row < matrices * queries; row++) {
        float *x = scores + row * length, most = x[0], sum = 0.0f;
        int64_t seen = (row % queries) % length + 1;
#pragma omp simd reduction(max : most)
        for (int64_t c = 0; c < seen; c++) most = x[c] > most ? x[c] : most;
#pragma omp simd reduction(+ : sum)
        for (int64_t c = 0; c < seen; c++) {
            float e = exponential((x[c] - most) * scale);
            x[c] = e;
            sum += e;
        }
        float factor = 1.0f / sum;
#pragma omp simd
        for (int64_t c = 0; c < seen; c++) x[c] *= factor;
        for (int64_t c = seen; c < length; c++) x[c] = 0.0f;
    }
}

// Gradients of the probabilities become those of the scores in place.
void causal_softmax_backward(float *gradient, const float *probabilities, int64_t matrices, int64_t queries,
                             int64_t length, float scale) {
#pragma omp parallel for if (matrices * queries * length > SMALL)
    for (int64_t row = 0; row < matrices * queries; row++) {
        float *d = gradient + row * length, dot = 0.0f;
        const float *p = probabilities + row * length;
        int64_t seen = (row % queries) % length + 1;
#pragma omp simd reduction(+ : dot)
        for (int64_t c = 0; c < seen; c++) dot += d[c] * p[c];
#pragma omp simd
        for (int64_t c = 0; c < seen; c++) d[c] = (d[c] - dot) * p[c] * scale;
        for (int64_t c = seen; c < length; c++) d[c] = 0.0f;
    }
}

}  // namespace

extern "C" void causal_softmax_fp32(float *scores, int64_t matrices, int64_t queries, int64_t length, float scale) {
    causal_softmax(scores, matrices, queries, length, scale);
}

extern "C" void causal_softmax_backward_fp32(float *gradient, const float *probabilities, int64_t matrices,
                                             int64_t queries, int64_t length, float scale) {
    causal_softmax_backward(gradient, probabilities, matrices, queries, length, scale);
}

#define EXPORTED(T, NAME)                                                                                              \
    extern "C" void rms_norm_##NAME(const T *h, int64_t hs, const T *w, T *out, int64_t os, float *inverse,            \
                                    int64_t rows, int64_t width, float eps, int64_t known) {                           \
        rms_norm<T>(h, hs, w, out, os, inverse, rows, width, eps, known != 0);                                         \
    }                                                                                                                  \
    extern "C" void rms_norm_backward_##NAME(const T *dn, int64_t ds, const T *h, int64_t hs, const T *w,              \
                                             const float *inverse, const T *add, int64_t as, T *out, int64_t os,       \
                                             int64_t rows, int64_t width) {                                            \
        rms_norm_backward<T>(dn, ds, h, hs, w, inverse, add, as, out, os, rows, width);                                \
    }                                                                                                                  \
    extern "C" void rotate_##NAME(const T *x, int64_t xr, int64_t xh, const T *cos, const T *sin, T *out, int64_t or_, \
                                  int64_t oh, int64_t rows, int64_t heads, int64_t channels, float sign) {             \
        rotate<T>(x, xr, xh, cos, sin, out, or_, oh, rows, heads, channels, sign);                                     \
    }                                                                                                                  \
    extern "C" void swiglu_##NAME(const T *gate, const T *up, T *out, int64_t os, int64_t rows, int64_t width) {       \
        swiglu<T>(gate, up, out, os, rows, width);                                                                     \
    }                                                                                                                  \
    extern "C" void swiglu_backward_##NAME(const T *dm, const T *gate, const T *up, T *dgate, int64_t gs, T *dup,      \
                                           int64_t us, int64_t rows, int64_t width) {                                  \
        swiglu_backward<T>(dm, gate, up, dgate, gs, dup, us, rows, width);                                             \
    }                                                                                                                  \
    extern "C" void nll_##NAME(const T *logits, const int64_t *targets, float *largest, float *total, float *losses,   \
                               int64_t rows, int64_t width) {                                                          \
        nll<T>(logits, targets, largest, total, losses, rows, width);                                                  \
    }                                                                                                                  \
    extern "C" void nll_gradient_##NAME(T *logits, const int64_t *targets, const float *largest, const float *total,   \
                                        const float *weights, int64_t rows, int64_t width) {                           \
        nll_gradient<T>(logits, targets, largest, total, weights, rows, width);                                        \
    }                                                                                                                  \
    extern "C" void sum_rows_##NAME(const T *x, int64_t xs, const int64_t *places, const int64_t *offsets, T *out,     \
                                    int64_t rows, int64_t width) {                                                     \
        sum_rows<T>(x, xs, places, offsets, out, rows, width);                                                         \
    }

EXPORTED(float, fp32)
EXPORTED(bf16, bf16)
