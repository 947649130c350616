#include "runtime/observe/request_metrics.h"

#include <prometheus/counter.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>

namespace foretoken {
namespace {

using Buckets = prometheus::Histogram::BucketBoundaries;
// vLLM's buckets, so that dashboards made for it read the same, with finer ones below 10 ms a
// token.
const Buckets kFirstToken = {.001, .005, .01, .02, .04, .06, .08, .1, .25, .5,  .75,
                             1,    2.5,  5,   7.5, 10,  20,  40,  80, 160, 640, 2560};
const Buckets kTokenGap = {.001, .0025, .005, .0075, .01, .025, .05, .075, .1, .15, .2, .3,
                           .4,   .5,    .75,  1,     2.5, 5,    7.5, 10,   20, 40,  80};
const Buckets kRequest = {.3, .5, .8, 1,  1.5, 2,   2.5, 5,   10,   15,  20,
                          30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680};
const Buckets kTokens = {1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000};
const Buckets kChoices = {1, 2, 5, 10, 20};
const Buckets kHttp = {.001, .0025, .005, .01, .025, .05, .1,  .25, .5,
                       1,    2.5,   5,    10,  30,   60,  120, 300};

}  // namespace

struct RequestMetrics::Impl {
  prometheus::Registry registry;
  std::string model;
  prometheus::Family<prometheus::Counter>* success;
  prometheus::Family<prometheus::Counter>* http_total;
  prometheus::Family<prometheus::Histogram>* http_seconds;
  prometheus::Histogram *first_token, *gap, *e2e, *queue, *prefill, *decode, *inference, *prompt,
      *generation, *n, *max_tokens;

  prometheus::Histogram& histogram(const std::string& name, const std::string& help,
                                   const Buckets& buckets) {
    return prometheus::BuildHistogram()
        .Name("foretoken:" + name)
        .Help(help)
        .Register(registry)
        .Add({{"model_name", model}}, buckets);
  }
};

RequestMetrics::RequestMetrics(const std::string& model_name) : impl_(std::make_unique<Impl>()) {
  Impl& i = *impl_;
  i.model = model_name;
  i.first_token = &i.histogram(
      "time_to_first_token_seconds",
      "From a request's arrival to the first output of each of its choices", kFirstToken);
  i.gap = &i.histogram(
      "inter_token_latency_seconds",
      "Between two outputs of one choice; with speculation an output may hold several tokens",
      kTokenGap);
  i.e2e = &i.histogram("e2e_request_latency_seconds",
                       "From a request's arrival to the last token of its last choice; requests "
                       "that ended by stop or "
                       "length",
                       kRequest);
  i.queue = &i.histogram("request_queue_time_seconds",
                         "Waiting for a place in the batch: of a request's choices the longest; "
                         "ended by stop or length",
                         kRequest);
  i.prefill = &i.histogram(
      "request_prefill_time_seconds",
      "Reading the prompt: of a request's choices the longest; ended by stop or length", kRequest);
  i.decode = &i.histogram("request_decode_time_seconds",
                          "Generating: of a request's choices the longest; ended by stop or length",
                          kRequest);
  i.inference =
      &i.histogram("request_inference_time_seconds", "The sum of the two above", kRequest);
  i.prompt = &i.histogram(
      "request_prompt_tokens",
      "Prompt tokens of a request, each prompt once however many choices; ended by stop or length",
      kTokens);
  i.generation = &i.histogram(
      "request_generation_tokens",
      "Generated tokens of a request, all its choices; ended by stop or length", kTokens);
  i.n = &i.histogram("request_params_n", "The n parameter of requests ended by stop or length",
                     kChoices);
  i.max_tokens = &i.histogram("request_params_max_tokens",
                              "The max_tokens parameter, or else the rest of the context, of "
                              "requests ended by stop or length",
                              kTokens);
  i.success =
      &prometheus::BuildCounter()
           .Name("foretoken:request_success_total")
           .Help(
               "Requests (not choices) that ended, by reason, aborted and failed ones included, "
               "since start")
           .Register(i.registry);
  i.http_total = &prometheus::BuildCounter()
                      .Name("foretoken:http_requests_total")
                      .Help("HTTP requests of every route, by status, since start")
                      .Register(i.registry);
  i.http_seconds = &prometheus::BuildHistogram()
                        .Name("foretoken:http_request_duration_seconds")
                        .Help("HTTP requests of every route, first byte read to last byte written")
                        .Register(i.registry);
  for (const char* reason : {"stop", "length", "abort", "error"})
    i.success->Add({{"model_name", i.model}, {"finished_reason", reason}});
}

RequestMetrics::~RequestMetrics() = default;
prometheus::Registry& RequestMetrics::registry() { return impl_->registry; }
void RequestMetrics::first_token(double seconds) { impl_->first_token->Observe(seconds); }
void RequestMetrics::token_gap(double seconds) { impl_->gap->Observe(seconds); }

void RequestMetrics::finished(const FinishedRequest& request) {
  Impl& i = *impl_;
  i.success->Add({{"model_name", i.model}, {"finished_reason", request.finished_reason}})
      .Increment();
  if (request.finished_reason == "abort" || request.finished_reason == "error") return;
  i.e2e->Observe(request.e2e_s);
  i.queue->Observe(request.queue_s);
  i.prefill->Observe(request.prefill_s);
  i.decode->Observe(request.decode_s);
  i.inference->Observe(request.prefill_s + request.decode_s);
  i.prompt->Observe(static_cast<double>(request.prompt_tokens));
  i.generation->Observe(static_cast<double>(request.generated_tokens));
  i.n->Observe(request.n);
  i.max_tokens->Observe(static_cast<double>(request.max_tokens));
}

void RequestMetrics::http(const std::string& handler, const std::string& method, int status,
                          double seconds) {
  impl_->http_total
      ->Add({{"handler", handler}, {"method", method}, {"status", std::to_string(status)}})
      .Increment();
  impl_->http_seconds->Add({{"handler", handler}, {"method", method}}, kHttp).Observe(seconds);
}

}  // namespace foretoken
