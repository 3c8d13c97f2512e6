// Python's view of the kernels: addresses are integers, shapes and ranges were checked by tokenvm.kernels.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstring>

#include "tokenvm/attention.hpp"
#include "tokenvm/kernels.hpp"
#include "tokenvm/linear.hpp"
#include "tokenvm/norm.hpp"
#include "tokenvm/paging.hpp"
#include "tokenvm/quantise.hpp"
#include "tokenvm/team.hpp"

namespace nb = nanobind;
using namespace tokenvm;
using Address = std::uintptr_t;
using Int = std::int64_t;
using NoGil = nb::call_guard<nb::gil_scoped_release>;

namespace {

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

KvFormat kv_format_of(Int format) {
  if (format < 0 || format > 2) throw nb::value_error("a KV format is 0 (raw), 1 (int8) or 2 (fp8)");
  return static_cast<KvFormat>(format);
}

PackFormat format_of(bool narrow) { return narrow ? PackFormat::kBf16 : PackFormat::kFp32; }

[[noreturn]] void raise_build_error(const std::string& message) {
  nb::object type = nb::module_::import_("tokenvm.errors").attr("BuildError");
  PyErr_SetString(type.ptr(), message.c_str());
  throw nb::python_error();
}

void set_isa(const std::string& name) {
  if (select_kernels(name)) return;
  std::string names;
  for (const std::string& known : available_kernels()) names += (names.empty() ? "" : ", ") + known;
  raise_build_error("TOKENVM_ISA=" + name + " cannot run on this machine: set one of " + names);
}

void set_threads(int threads) {
  if (threads < 1) throw nb::value_error("the number of threads must be at least 1");
  resize_team(threads);
}

void bind_linear(nb::module_& m) {
  m.def("packed_bytes", [](bool narrow, Int n, Int k) { return packed_bytes(format_of(narrow), n, k); });
  m.def(
      "pack",
      [](bool narrow, Address weight, Int n, Int k, Address packed) {
        pack(format_of(narrow), at<void>(weight), n, k, at<void>(packed));
      },
      NoGil());
  m.def(
      "linear",
      [](bool narrow, Address x, Int rows, Address packed, Int n, Int k, Address out) {
        linear(format_of(narrow), at<void>(x), rows, at<void>(packed), n, k, at<float>(out));
      },
      NoGil());
  m.def(
      "linear_add",
      [](bool narrow, Address x, Int rows, Address packed, Int n, Int k, Address out) {
        linear_add(format_of(narrow), at<void>(x), rows, at<void>(packed), n, k, at<float>(out));
      },
      NoGil());
  m.def(
      "linear_silu_mul",
      [](bool narrow, Address x, Int rows, Address packed, Int n, Int k, Address out, bool narrow_out) {
        linear_silu_mul(format_of(narrow), at<void>(x), rows, at<void>(packed), n, k, at<void>(out), narrow_out);
      },
      NoGil());
  m.def(
      "gather_rows",
      [](bool narrow, Address packed, Int n, Int k, Address ids, Int count, Address out) {
        gather_rows(format_of(narrow), at<void>(packed), n, k, at<Int>(ids), count, at<float>(out));
      },
      NoGil());
}

void bind_rowwise(nb::module_& m) {
  m.def(
      "rms_norm",
      [](Address x, Address delta, Address weight, float eps, Int rows, Int width, Address out, bool narrow) {
        rms_norm(at<float>(x), at<float>(delta), at<float>(weight), eps, rows, width, at<void>(out), narrow);
      },
      NoGil());
  m.def(
      "silu_mul",
      [](Address gate_up, Int rows, Int width, Address out, bool narrow) {
        silu_mul(at<float>(gate_up), rows, width, at<void>(out), narrow);
      },
      NoGil());
  m.def(
      "gelu_mul",
      [](Address gate_up, Int rows, Int width, Address out, bool narrow) {
        gelu_mul(at<float>(gate_up), rows, width, at<void>(out), narrow);
      },
      NoGil());
  m.def(
      "norm_heads",
      [](Address x, Int rows, Int heads, Int first, Int count, Int head_dim, Address weight, float eps) {
        norm_heads(at<float>(x), rows, heads, first, count, head_dim, at<float>(weight), eps);
      },
      NoGil());
  m.def(
      "add_rows",
      [](Address x, Address added, Int stride, Int rows, Int width) {
        add_rows(at<float>(x), at<float>(added), stride, rows, width);
      },
      NoGil());
  m.def(
      "cast_bf16", [](Address x, Int count, Address out) { cast_bf16(at<float>(x), count, at<bf16>(out)); },
      NoGil());
  m.def(
      "reset_state",
      [](Address acc, Address peak, Address mass, Int rows, Int head_dim) {
        reset_state(at<float>(acc), at<float>(peak), at<float>(mass), rows, head_dim);
      },
      NoGil());
  m.def(
      "finish_state",
      [](Address acc, Address peak, Address mass, Int rows, Int head_dim, Address out, bool narrow,
         Address lse) {
        finish_state(at<float>(acc), at<float>(peak), at<float>(mass), rows, head_dim, at<void>(out), narrow,
                     at<float>(lse));
      },
      NoGil());
}

void bind_paging(nb::module_& m) {
  m.def(
      "rope_append",
      [](Address qkv, Int rows, Int q_heads, Int kv_heads, Int head_dim, Int tokens, bool narrow,
         Address cos_sin, Int positions, Address position, Address parts, Address offsets, Address out) {
        rope_append(at<float>(qkv), rows, q_heads, {kv_heads, head_dim, tokens, narrow}, at<float>(cos_sin),
                    positions, at<Int>(position), at<std::uint64_t>(parts), at<std::int32_t>(offsets),
                    at<void>(out));
      },
      NoGil());
  m.def(
      "fill",
      [](Address address, std::size_t bytes, int byte) { std::memset(at<void>(address), byte, bytes); },
      NoGil());
  m.def(
      "copy",
      [](Address target, Address source, std::size_t bytes) {
        std::memcpy(at<void>(target), at<void>(source), bytes);
      },
      NoGil());
  m.def(
      "read_part",
      [](Address part, Int kv_heads, Int head_dim, Int tokens, bool narrow, Address k, Address v) {
        read_part(at<void>(part), {kv_heads, head_dim, tokens, narrow}, at<void>(k), at<void>(v));
      },
      NoGil());
  m.def(
      "write_part",
      [](Address part, Int kv_heads, Int head_dim, Int tokens, bool narrow, Address k, Address v) {
        write_part(at<void>(part), {kv_heads, head_dim, tokens, narrow}, at<void>(k), at<void>(v));
      },
      NoGil());
}

void bind_quantise(nb::module_& m) {
  m.def(
      "quantise",
      [](Address sources, Address targets, Int count, Int kv_heads, Int head_dim, Int tokens, bool narrow,
         Int format) {
        quantise(at<std::uint64_t>(sources), at<std::uint64_t>(targets), count,
                 {kv_heads, head_dim, tokens, narrow, kv_format_of(format)});
      },
      NoGil());
  m.def(
      "dequantise",
      [](Address part, Int kv_heads, Int head_dim, Int tokens, bool narrow, Int format, Address raw) {
        dequantise(at<void>(part), {kv_heads, head_dim, tokens, narrow, kv_format_of(format)}, at<void>(raw));
      },
      NoGil());
}

void bind_attention(nb::module_& m) {
  m.def(
      "attend",
      [](Address acc, Address peak, Address mass, Address q, Address position, Int rows, Int q_heads,
         Int kv_heads, Int head_dim, Int tokens, bool narrow, Address segments, Address first_page,
         Int segment_count, Address parts, Int part_count, float scale, Int window, Int format) {
        attend({.state = {at<float>(acc), at<float>(peak), at<float>(mass)},
                .q = at<void>(q),
                .position = at<Int>(position),
                .rows = rows,
                .q_heads = q_heads,
                .shape = {kv_heads, head_dim, tokens, narrow, kv_format_of(format)},
                .segments = at<Segment>(segments),
                .first_page = at<std::int32_t>(first_page),
                .segment_count = segment_count,
                .parts = at<std::uint64_t>(parts),
                .part_count = part_count,
                .scale = scale,
                .window = window});
      },
      NoGil());
}

}  // namespace

void bind_kernels(nb::module_& m) {
  m.def("isa", [] { return std::string(kernels().name); });
  m.def("isa_levels", &available_kernels);
  m.def("set_isa", &set_isa);
  m.def("threads", &team_size);
  m.def("set_threads", &set_threads);
  bind_linear(m);
  bind_rowwise(m);
  bind_paging(m);
  bind_quantise(m);
  bind_attention(m);
}
