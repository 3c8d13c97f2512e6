// A recorded sequence of kernel calls on fixed addresses, played for any number of rows without the interpreter.
#include <nanobind/nanobind.h>

#include <functional>
#include <utility>
#include <vector>

#include "tokenvm/linear.hpp"
#include "tokenvm/norm.hpp"

namespace nb = nanobind;
using namespace tokenvm;
using Address = std::uintptr_t;
using Int = std::int64_t;

namespace {

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

// Whoever records keeps the memory behind every address alive, and its shapes right for the rows that are played.
class Tape {
 public:
  void linear(bool narrow, Address x, Address packed, Int outputs, Int columns, Address out) {
    const PackFormat format = narrow ? PackFormat::kBf16 : PackFormat::kFp32;
    add([=](Int rows) {
      tokenvm::linear(format, at<void>(x), rows, at<void>(packed), outputs, columns, at<float>(out));
    });
  }

  void linear_add(bool narrow, Address x, Address packed, Int outputs, Int columns, Address out) {
    const PackFormat format = narrow ? PackFormat::kBf16 : PackFormat::kFp32;
    add([=](Int rows) {
      tokenvm::linear_add(format, at<void>(x), rows, at<void>(packed), outputs, columns, at<float>(out));
    });
  }

  void linear_silu_mul(bool narrow, Address x, Address packed, Int outputs, Int columns, Address out) {
    const PackFormat format = narrow ? PackFormat::kBf16 : PackFormat::kFp32;
    add([=](Int rows) {
      tokenvm::linear_silu_mul(format, at<void>(x), rows, at<void>(packed), outputs, columns, at<void>(out), narrow);
    });
  }

  void rms_norm(Address x, Address weight, float eps, Int width, Address out, bool narrow) {
    add([=](Int rows) {
      tokenvm::rms_norm(at<float>(x), nullptr, at<float>(weight), eps, rows, width, at<void>(out), narrow);
    });
  }

  void gelu_mul(Address gate_up, Int width, Address out, bool narrow) {
    add([=](Int rows) { tokenvm::gelu_mul(at<float>(gate_up), rows, width, at<void>(out), narrow); });
  }

  void norm_heads(Address x, Int heads, Int first, Int count, Int head_dim, Address weight, float eps) {
    add([=](Int rows) {
      tokenvm::norm_heads(at<float>(x), rows, heads, first, count, head_dim, at<float>(weight), eps);
    });
  }

  void add_rows(Address x, Address added, Int stride, Int width) {
    add([=](Int rows) { tokenvm::add_rows(at<float>(x), at<float>(added), stride, rows, width); });
  }

  void play(Int rows) const {
    for (const auto& call : calls_) call(rows);
  }

 private:
  void add(std::function<void(Int)> call) { calls_.push_back(std::move(call)); }

  std::vector<std::function<void(Int)>> calls_;
};

}  // namespace

void bind_tape(nb::module_& m) {
  nb::class_<Tape>(m, "Tape")
      .def(nb::init<>())
      .def("linear", &Tape::linear)
      .def("linear_add", &Tape::linear_add)
      .def("linear_silu_mul", &Tape::linear_silu_mul)
      .def("rms_norm", &Tape::rms_norm)
      .def("gelu_mul", &Tape::gelu_mul)
      .def("norm_heads", &Tape::norm_heads)
      .def("add_rows", &Tape::add_rows)
      .def("play", &Tape::play, nb::call_guard<nb::gil_scoped_release>());
}
