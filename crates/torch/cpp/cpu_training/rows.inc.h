// Norm, rotation, gate and softmax, row by row.
#pragma once

#include "attention.inc.h"
#include "storage.inc.h"

namespace asyncthink::cpu_training::ASYNCTHINK_ISA {

ASYNCTHINK_INLINE float rstd_of(float sum_of_squares, int64_t width, float eps) {
  return 1.0f / __builtin_sqrtf(sum_of_squares / static_cast<float>(width) + eps);
}

template <class T>
void norm_forward(const NormArgs& n, int64_t begin, int64_t end) {
  const T* weight = static_cast<const T*>(n.weight);
  for (int64_t row = begin; row < end; ++row) {
    const T* x = static_cast<const T*>(n.x) + row * n.width;
    T* y = static_cast<T*>(n.y) + row * n.width;
    V16 squares = zero();
    for (int64_t i = 0; i < n.width; i += kLanes) {
      const V16 v = read(x + i, n.width - i);
      squares = fma(v, v, squares);
    }
    const float rstd = rstd_of(sum_of(squares), n.width, n.eps);
    n.rstd[row] = rstd;
    for (int64_t i = 0; i < n.width; i += kLanes) {
      const int64_t count = n.width - i;
      write(y + i, read(x + i, count) * set1(rstd) * read(weight + i, count), count);
    }
  }
}

// dx += rstd * (w dy - x rstd^2 mean(x w dy)); dweight += x rstd dy.
template <class T>
void norm_backward(const NormArgs& n, int64_t begin, int64_t end) {
  const T* weight = static_cast<const T*>(n.weight);
  for (int64_t row = begin; row < end; ++row) {
    const T* x = static_cast<const T*>(n.x) + row * n.width;
    const T* dy = static_cast<const T*>(n.dy) + row * n.width;
    T* dx = static_cast<T*>(n.dx) + row * n.width;
    V16 dot = zero();
    for (int64_t i = 0; i < n.width; i += kLanes) {
      const int64_t count = n.width - i;
      dot = fma(read(x + i, count) * read(weight + i, count), read(dy + i, count), dot);
    }
    const float rstd = n.rstd[row];
    const V16 scale = set1(rstd), back = set1(sum_of(dot) / static_cast<float>(n.width) * rstd * rstd * rstd);
    for (int64_t i = 0; i < n.width; i += kLanes) {
      const int64_t count = n.width - i;
      const V16 v = read(x + i, count), d = read(dy + i, count);
      write(dx + i, read(dx + i, count) + (d * read(weight + i, count) * scale - v * back), count);
      if (n.dweight != nullptr) write(n.dweight + i, fma(v * scale, d, read(n.dweight + i, count)), count);
    }
  }
}

// A head in f32, normed if `norm` is given; returns its rstd.
template <class T>
ASYNCTHINK_INLINE float read_head(const T* x, const T* norm, int64_t dim, float eps, float* head) {
  V16 squares = zero();
  for (int64_t i = 0; i < dim; i += kLanes) {
    const V16 v = read(x + i, dim - i);
    squares = fma(v, v, squares);
    store(head + i, v);
  }
  if (norm == nullptr) return 1.0f;
  const float rstd = rstd_of(sum_of(squares), dim, eps);
  for (int64_t i = 0; i < dim; i += kLanes) store(head + i, load(head + i) * set1(rstd) * read(norm + i, dim - i));
  return rstd;
}

// Rotates a head; `back` by the negative angle.
template <class T>
ASYNCTHINK_INLINE void rotate(float* head, const T* cos, const T* sin, int64_t half, bool back) {
  for (int64_t i = 0; i < half; i += kLanes) {
    const int64_t count = half - i;
    const V16 c = read(cos + i, count), s = read(sin + i, count) * set1(back ? -1.0f : 1.0f);
    const V16 a = read(head + i, count), b = read(head + half + i, count);
    write(head + i, a * c - b * s, count);
    write(head + half + i, b * c + a * s, count);
  }
}

constexpr int64_t kMaxHeadDim = 512;

template <class T>
void rotary_forward(const RotaryArgs& r, int64_t begin, int64_t end) {
  const int64_t dim = r.head_dim, half = dim / 2;
  float head[kMaxHeadDim];
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t h = 0; h < r.num_heads + r.num_kv_heads; ++h) {
      const void* norm = h < r.num_heads ? r.query_norm : r.key_norm;
      read_head(static_cast<const T*>(r.x) + row * r.x_stride + h * dim, static_cast<const T*>(norm), dim, r.eps, head);
      rotate(head, static_cast<const T*>(r.cos) + row * half, static_cast<const T*>(r.sin) + row * half, half, false);
      T* y = static_cast<T*>(r.y) + row * r.y_stride + h * dim;
      for (int64_t i = 0; i < dim; i += kLanes) write(y + i, load(head + i), dim - i);
    }
  }
}

template <class T>
void rotary_backward(const RotaryArgs& r, int64_t begin, int64_t end) {
  const int64_t dim = r.head_dim, half = dim / 2, num_rotated = r.num_heads + r.num_kv_heads;
  float head[kMaxHeadDim];
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t h = 0; h < num_rotated; ++h) {
      const bool is_query = h < r.num_heads;
      const T* norm = static_cast<const T*>(is_query ? r.query_norm : r.key_norm);
      const float* dy = r.dy + row * r.dy_stride + h * dim;
      for (int64_t i = 0; i < dim; i += kLanes) store(head + i, read(dy + i, dim - i));
      rotate(head, static_cast<const T*>(r.cos) + row * half, static_cast<const T*>(r.sin) + row * half, half, true);
      T* dx = static_cast<T*>(r.dx) + row * r.x_stride + h * dim;
      if (norm == nullptr) {
        for (int64_t i = 0; i < dim; i += kLanes) write(dx + i, load(head + i), dim - i);
        continue;
      }
      const T* x = static_cast<const T*>(r.x) + row * r.x_stride + h * dim;
      V16 squares = zero(), dot = zero();
      for (int64_t i = 0; i < dim; i += kLanes) {
        const V16 v = read(x + i, dim - i);
        squares = fma(v, v, squares);
        dot = fma(v * read(norm + i, dim - i), read(head + i, dim - i), dot);
      }
      const float rstd = rstd_of(sum_of(squares), dim, r.eps);
      const V16 scale = set1(rstd), back = set1(sum_of(dot) / static_cast<float>(dim) * rstd * rstd * rstd);
      float* dnorm = is_query ? r.dquery_norm : r.dkey_norm;
      for (int64_t i = 0; i < dim; i += kLanes) {
        const int64_t count = dim - i;
        const V16 v = read(x + i, count), d = read(head + i, count);
        write(dx + i, d * read(norm + i, count) * scale - v * back, count);
        if (dnorm != nullptr) write(dnorm + i, fma(v * scale, d, read(dnorm + i, count)), count);
      }
    }
    const float* dvalue = r.dy + row * r.dy_stride + num_rotated * dim;
    T* dx = static_cast<T*>(r.dx) + row * r.x_stride + num_rotated * dim;
    const int64_t width = r.num_kv_heads * dim;
    for (int64_t i = 0; i < width; i += kLanes) write(dx + i, read(dvalue + i, width - i), width - i);
  }
}

template <class T>
void gate_forward(const GateArgs& g, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const T* gate = static_cast<const T*>(g.gate_up) + row * 2 * g.width;
    T* act = static_cast<T*>(g.act) + row * g.width;
    for (int64_t i = 0; i < g.width; i += kLanes) {
      const int64_t count = g.width - i;
      const V16 x = read(gate + i, count);
      write(act + i, x * sigmoid(x) * read(gate + g.width + i, count), count);
    }
  }
}

template <class T>
void gate_backward(const GateArgs& g, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    T* gate = static_cast<T*>(g.gate_up) + row * 2 * g.width;
    T* act = static_cast<T*>(g.act) + row * g.width;
    const T* dact = static_cast<const T*>(g.dact) + row * g.width;
    for (int64_t i = 0; i < g.width; i += kLanes) {
      const int64_t count = g.width - i;
      const V16 x = read(gate + i, count), up = read(gate + g.width + i, count), d = read(dact + i, count);
      const V16 s = sigmoid(x), silu = x * s;
      write(act + i, silu * up, count);
      write(gate + i, d * up * (s + silu * (set1(1.0f) - s)), count);
      write(gate + g.width + i, d * silu, count);
    }
  }
}

template <class T>
void head_forward(const HeadArgs& h, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    float* logits = h.logits + row * h.vocab;
    V16 largest = set1(-__builtin_inff());
    for (int64_t i = 0; i < h.vocab; i += kLanes) {
      const int64_t count = h.vocab - i;
      const V16 z = read(logits + i, count) * set1(h.inverse_temperature);
      write(logits + i, z, count);
      if (count >= kLanes) {
        largest = max(largest, z);
      } else {
        for (int64_t j = 0; j < count; ++j) largest = max(largest, set1(logits[i + j]));
      }
    }
    const float top = max_of(largest);
    V16 sum = zero(), weighted = zero();
    for (int64_t i = 0; i < h.vocab; i += kLanes) {
      const int64_t count = h.vocab - i;
      if (count >= kLanes) {
        const V16 z = read(logits + i) - set1(top), e = exp2_of(z * set1(kLog2E));
        sum = sum + e;
        weighted = fma(e, z, weighted);
      } else {
        float lanes[kLanes] = {}, product[kLanes] = {};
        for (int64_t j = 0; j < count; ++j) {
          const float z = logits[i + j] - top;
          float e[kLanes];
          store(e, exp2_of(set1(z * kLog2E)));
          lanes[j] = e[0];
          product[j] = e[0] * z;
        }
        sum = sum + load(lanes);
        weighted = weighted + load(product);
      }
    }
    const float total = sum_of(sum), log_total = __builtin_logf(total);
    h.log_sum[row] = top + log_total;
    h.logp[row] = logits[h.targets[row]] - top - log_total;
    if (h.entropy != nullptr) h.entropy[row] = log_total - sum_of(weighted) / total;
  }
}

// dL/dz = (dlogp (onehot - p) - dentropy p (log p + entropy)) / temperature.
template <class T>
void head_backward(const HeadArgs& h, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const float* logits = h.logits + row * h.vocab;
    T* dlogits = static_cast<T*>(h.dlogits) + row * h.vocab;
    const V16 log_sum = set1(h.log_sum[row]);
    const V16 dlogp = set1(-h.dlogp[row] * h.inverse_temperature);
    const bool has_entropy = h.dentropy != nullptr;
    const V16 dentropy = set1(has_entropy ? -h.dentropy[row] * h.inverse_temperature : 0.0f);
    const V16 entropy = set1(has_entropy ? h.entropy[row] : 0.0f);
    const int64_t target = h.targets[row];
    const float at_target = logits[target];
    for (int64_t i = 0; i < h.vocab; i += kLanes) {
      const int64_t count = h.vocab - i;
      const V16 logp = read(logits + i, count) - log_sum, p = exp2_of(logp * set1(kLog2E));
      V16 d = p * dlogp;
      if (has_entropy) d = fma(p * (logp + entropy), dentropy, d);
      write(dlogits + i, d, count);
    }
    // The target's own value is made from its logit again, so that it may have been overwritten.
    V16 logp = set1(at_target) - log_sum, p = exp2_of(logp * set1(kLog2E));
    V16 d = p * dlogp - dlogp;
    if (has_entropy) d = fma(p * (logp + entropy), dentropy, d);
    write(dlogits + target, d, 1);
  }
}

template <class T>
Kernels table(const char* name) {
  return Kernels{norm_forward<T>,      norm_backward<T>,      rotary_forward<T>, rotary_backward<T>, gate_forward<T>, gate_backward<T>,
                 attention_forward<T>, attention_backward<T>, head_forward<T>,   head_backward<T>,   name};
}

}  // namespace
