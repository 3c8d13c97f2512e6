// Arrays in, arrays out. Every call that may wait or take a lock releases the GIL.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/vector.h>

#include <cstring>
#include <stdexcept>

#include "tokenvm/crc32c.hpp"
#include "tokenvm/io_pool.hpp"
#include "tokenvm/ring.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using tokenvm::Check;
using tokenvm::Copy;
using tokenvm::IoPool;
using tokenvm::Kind;
using tokenvm::Outcome;
using tokenvm::Ring;
using Unlocked = nb::call_guard<nb::gil_scoped_release>;

template <class T>
using Column = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

template <class T>
nb::ndarray<nb::numpy, T, nb::ndim<1>> to_numpy(std::vector<T> values) {
  auto* owned = new std::vector<T>(std::move(values));
  nb::capsule owner(owned, [](void* p) noexcept { delete static_cast<std::vector<T>*>(p); });
  return nb::ndarray<nb::numpy, T, nb::ndim<1>>(owned->data(), {owned->size()}, owner);
}

std::vector<Copy> to_copies(const Column<uint8_t>& kind, const Column<uint8_t>& check, const Column<int32_t>& fd,
                            const Column<uint64_t>& place, const Column<uint64_t>& nbytes,
                            const Column<uint32_t>& checksum) {
  const size_t n = kind.size();
  if (check.size() != n || fd.size() != n || place.size() != n || nbytes.size() != n || checksum.size() != n)
    throw std::invalid_argument("the columns of copies differ in length");
  std::vector<Copy> copies(n);
  for (size_t i = 0; i < n; ++i) {
    if (kind.data()[i] > 3 || check.data()[i] > 2 || nbytes.data()[i] == 0)
      throw std::invalid_argument("a copy has an unknown kind or check, or no bytes");
    copies[i] = {static_cast<Kind>(kind.data()[i]), static_cast<Check>(check.data()[i]), fd.data()[i],
                 place.data()[i],                   0,                                   nbytes.data()[i],
                 checksum.data()[i]};
  }
  return copies;
}

uint64_t submit_batch(IoPool& pool, const Column<uint8_t>& kind, const Column<uint8_t>& check,
                      const Column<int32_t>& fd, const Column<uint64_t>& place, const Column<uint64_t>& address,
                      const Column<uint64_t>& nbytes, const Column<uint32_t>& checksum, bool urgent) {
  std::vector<Copy> copies = to_copies(kind, check, fd, place, nbytes, checksum);
  if (address.size() != copies.size()) throw std::invalid_argument("the columns of copies differ in length");
  for (size_t i = 0; i < copies.size(); ++i) copies[i].address = address.data()[i];
  const nb::gil_scoped_release unlocked;
  return pool.submit(std::move(copies), urgent);
}

uint64_t submit_program(Ring& ring, const Column<uint8_t>& kind, const Column<uint8_t>& check,
                        const Column<int32_t>& fd, const Column<uint64_t>& place, const Column<uint64_t>& nbytes,
                        const Column<uint32_t>& checksum) {
  std::vector<Copy> program = to_copies(kind, check, fd, place, nbytes, checksum);
  for (const Copy& copy : program)
    if (tokenvm::is_outward(copy.kind) || copy.nbytes > ring.stride())
      throw std::invalid_argument("a ring takes reads that fit its slots");
  const nb::gil_scoped_release unlocked;
  return ring.submit(std::move(program));
}

nb::tuple take_batch(IoPool& pool, uint64_t batch) {
  std::vector<Outcome> outcomes;
  {
    const nb::gil_scoped_release unlocked;
    outcomes = pool.take(batch);
  }
  std::vector<uint8_t> status(outcomes.size());
  std::vector<uint32_t> checksum(outcomes.size());
  for (size_t i = 0; i < outcomes.size(); ++i) {
    status[i] = static_cast<uint8_t>(outcomes[i].status);
    checksum[i] = outcomes[i].checksum;
  }
  return nb::make_tuple(to_numpy(std::move(status)), to_numpy(std::move(checksum)));
}

nb::ndarray<nb::numpy, uint64_t, nb::ndim<1>> failed_tickets(Ring& ring, uint64_t begin, uint64_t end) {
  std::vector<uint64_t> tickets;
  {
    const nb::gil_scoped_release unlocked;
    tickets = ring.failed(begin, end);
  }
  return to_numpy(std::move(tickets));
}

void* at(uint64_t address) { return reinterpret_cast<void*>(static_cast<uintptr_t>(address)); }

void bind_pool(nb::module_& module) {
  nb::class_<IoPool>(module, "IoPool", "Native I/O threads that carry out batches of copies.")
      .def(nb::init<size_t, uint64_t>(), "threads"_a, "read_bytes"_a)
      .def("submit", &submit_batch, "kind"_a, "check"_a, "fd"_a, "place"_a, "address"_a, "nbytes"_a, "checksum"_a,
           "urgent"_a)
      .def("poll", [](IoPool& pool, uint64_t batch) { return static_cast<int>(pool.poll(batch)); }, Unlocked())
      .def("wait", [](IoPool& pool, uint64_t batch) { return static_cast<int>(pool.wait(batch)); }, Unlocked())
      .def("take", &take_batch)
      .def("forget", &IoPool::forget, Unlocked())
      .def("close", &IoPool::close, Unlocked())
      .def("drain_intervals", &IoPool::drain_intervals, "outward"_a, Unlocked())
      .def("moved_bytes", &IoPool::moved_bytes, Unlocked());
}

void bind_ring(nb::module_& module) {
  nb::class_<Ring>(module, "Ring", "The staging ring: ordered reads paced by credits.")
      .def(nb::init<IoPool&, uint64_t, uint64_t, uint64_t>(), "pool"_a, "base"_a, "slots"_a, "stride"_a,
           nb::keep_alive<1, 2>())
      .def("submit", &submit_program, "kind"_a, "check"_a, "fd"_a, "place"_a, "nbytes"_a, "checksum"_a)
      .def("wait", [](Ring& ring, uint64_t end) { return static_cast<int>(ring.wait(end)); }, Unlocked())
      .def("release", &Ring::release, Unlocked())
      .def("failed", &failed_tickets)
      .def("cancel", &Ring::cancel, Unlocked())
      .def("marks", &Ring::marks, Unlocked());
}

}  // namespace

void bind_io(nb::module_& module) {
  bind_pool(module);
  bind_ring(module);
  module.def("crc32c", [](uint64_t address, uint64_t nbytes, uint32_t crc) {
    return tokenvm::crc32c(at(address), nbytes, crc);
  }, "address"_a, "nbytes"_a, "crc"_a = 0, Unlocked());
  module.def("crc32c_portable", [](uint64_t address, uint64_t nbytes, uint32_t crc) {
    return tokenvm::crc32c_portable(at(address), nbytes, crc);
  }, "address"_a, "nbytes"_a, "crc"_a = 0, Unlocked());
}
