// Counts every operator new of a test program that reads the count: the operators, which are the
// program's, come with it.
#pragma once

#include <atomic>
#include <cstdint>

extern std::atomic<std::int64_t> allocations;
extern thread_local std::int64_t allocations_of_this_thread;
