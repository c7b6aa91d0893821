// PyTorch's expensive operators on a CPU, without computing: each gives memory of the right size, as a launch on a GPU
// does before the kernel has run. What is left of an operator is what the host does for it.
#include <ATen/ATen.h>
#include <torch/library.h>

using at::Tensor;
using std::optional;
using std::tuple;

namespace host {

Tensor mm(const Tensor& a, const Tensor& b) { return at::empty({a.size(0), b.size(1)}, a.options()); }

Tensor wide_mm(const Tensor& a, const Tensor& b, at::ScalarType dtype) {
  return at::empty({a.size(0), b.size(1)}, a.options().dtype(dtype));
}

Tensor addmm(const Tensor&, const Tensor& a, const Tensor& b, const at::Scalar&, const at::Scalar&) { return host::mm(a, b); }

Tensor& addmm_(Tensor& self, const Tensor&, const Tensor&, const at::Scalar&, const at::Scalar&) { return self; }

Tensor bmm(const Tensor& a, const Tensor& b) { return at::empty({a.size(0), a.size(1), b.size(2)}, a.options()); }

Tensor baddbmm(const Tensor&, const Tensor& a, const Tensor& b, const at::Scalar&, const at::Scalar&) {
  return host::bmm(a, b);
}

// (B, h, N, d), in the memory of (B, N, h, d).
Tensor heads(const Tensor& like, int64_t width) {
  return at::empty({like.size(0), like.size(2), like.size(1), width}, like.options()).transpose(1, 2);
}

tuple<Tensor, Tensor> attention(const Tensor& q, const Tensor&, const Tensor& v, double, bool, const optional<Tensor>&,
                                optional<double>) {
  return {heads(q, v.size(3)), at::empty({q.size(0), q.size(2), q.size(1)}, q.options().dtype(at::kFloat))};
}

tuple<Tensor, Tensor, Tensor> attention_backward(const Tensor&, const Tensor& q, const Tensor& k, const Tensor& v,
                                                 const Tensor&, const Tensor&, double, bool, const optional<Tensor>&,
                                                 optional<double>) {
  return {heads(q, q.size(3)), heads(k, k.size(3)), heads(v, v.size(3))};
}

Tensor convolution(const Tensor& x, const Tensor& weight, const optional<Tensor>&, c10::SymIntArrayRef stride,
                   c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation, bool transposed, c10::SymIntArrayRef,
                   c10::SymInt groups) {
  std::vector<int64_t> size{x.size(0), transposed ? weight.size(1) * groups.expect_int() : weight.size(0)};
  for (int64_t i = 0; i + 2 < x.dim(); ++i) {
    auto s = stride[i].expect_int(), p = padding[i].expect_int(), d = dilation[i].expect_int();
    auto window = d * (weight.size(i + 2) - 1) + 1, side = x.size(i + 2);
    size.push_back(transposed ? (side - 1) * s - 2 * p + window : (side + 2 * p - window) / s + 1);
  }
  return at::empty(size, x.options(), x.suggest_memory_format());
}

tuple<Tensor, Tensor, Tensor> convolution_backward(const Tensor& grad, const Tensor& x, const Tensor& weight,
                                                   at::OptionalSymIntArrayRef, c10::SymIntArrayRef,
                                                   c10::SymIntArrayRef, c10::SymIntArrayRef, bool, c10::SymIntArrayRef,
                                                   c10::SymInt, std::array<bool, 3> wanted) {
  return {wanted[0] ? at::empty_like(x) : Tensor(), wanted[1] ? at::empty_like(weight) : Tensor(),
          wanted[2] ? at::empty({grad.size(1)}, grad.options()) : Tensor()};
}

tuple<Tensor, Tensor, Tensor> layer_norm(const Tensor& x, c10::SymIntArrayRef shape, const optional<Tensor>&,
                                         const optional<Tensor>&, double) {
  std::vector<int64_t> size(x.sizes().begin(), x.sizes().end());
  for (size_t i = 0; i < shape.size(); ++i) size[size.size() - 1 - i] = 1;
  auto wide = x.options().dtype(at::kFloat);
  return {at::empty_like(x, at::MemoryFormat::Contiguous), at::empty(size, wide), at::empty(size, wide)};
}

tuple<Tensor, Tensor, Tensor> layer_norm_backward(const Tensor&, const Tensor& x, c10::SymIntArrayRef, const Tensor&,
                                                  const Tensor&, const optional<Tensor>& weight,
                                                  const optional<Tensor>& bias, std::array<bool, 3> wanted) {
  return {wanted[0] ? at::empty_like(x) : Tensor(), wanted[1] ? at::empty_like(*weight) : Tensor(),
          wanted[2] ? at::empty_like(*bias) : Tensor()};
}

Tensor gelu(const Tensor& x, c10::string_view) { return at::empty_like(x); }

Tensor gelu_backward(const Tensor& grad, const Tensor&, c10::string_view) { return at::empty_like(grad); }

Tensor vector_norm(const Tensor& x, const at::Scalar&, at::OptionalIntArrayRef dims, bool keep,
                   optional<at::ScalarType> dtype) {
  std::vector<int64_t> sizes = x.sizes().vec();
  for (int64_t i = x.dim() - 1; i >= 0; --i) {
    bool reduced = !dims || dims->empty();
    if (!reduced) for (int64_t dim : *dims) reduced = reduced || (dim + x.dim()) % x.dim() == i;
    if (!reduced) continue;
    if (keep) sizes[i] = 1; else sizes.erase(sizes.begin() + i);
  }
  return at::empty(sizes, x.options().dtype(dtype.value_or(x.scalar_type())));
}

Tensor softmax(const Tensor& x, int64_t, bool) { return at::empty_like(x); }

Tensor softmax_backward(const Tensor& grad, const Tensor&, int64_t, at::ScalarType dtype) {
  return at::empty_like(grad, grad.options().dtype(dtype));
}

}  // namespace host

TORCH_LIBRARY_IMPL(aten, CPU, m) {
  m.impl("mm", host::mm);
  m.impl("mm.dtype", host::wide_mm);
  m.impl("addmm", host::addmm);
  m.impl("addmm_", host::addmm_);
  m.impl("bmm", host::bmm);
  m.impl("baddbmm", host::baddbmm);
  m.impl("_scaled_dot_product_flash_attention_for_cpu", host::attention);
  m.impl("_scaled_dot_product_flash_attention_for_cpu_backward", host::attention_backward);
  m.impl("convolution", host::convolution);
  m.impl("convolution_backward", host::convolution_backward);
  m.impl("native_layer_norm", host::layer_norm);
  m.impl("native_layer_norm_backward", host::layer_norm_backward);
  m.impl("gelu", host::gelu);
  m.impl("gelu_backward", host::gelu_backward);
  m.impl("linalg_vector_norm", host::vector_norm);
  m.impl("_softmax", host::softmax);
  m.impl("_softmax_backward_data", host::softmax_backward);
}
