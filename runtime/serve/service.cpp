#include "runtime/serve/service.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <array>
#include <boost/asio/post.hpp>

#include "runtime/observe/build_info.h"
#include "runtime/observe/dashboard.h"
#include "runtime/observe/metrics.h"
#include "runtime/observe/speculator_json.h"
#include "runtime/observe/speedup.h"
#include "runtime/observe/stats_json.h"
#include "runtime/serve/json_fields.h"

namespace foretoken {
namespace {

namespace json = boost::json;

constexpr std::size_t kMaxDomains = 256;  // distinct labels in statistics
constexpr std::size_t kMaxWarnedFields = 1000;

HttpReply json_response(const json::object& body) { return {.body = json::serialize(body)}; }

HttpReply uncached(HttpReply response) {
  response.headers = {{"Cache-Control", "no-store"}};
  return response;
}

}  // namespace

// A route: who may ask, what the body is, where the answer is made, and by whom. To add one is to
// add a row (and its handler).
struct Service::Route {
  // An operator: with a key, or from this machine where none is wanted.
  enum Access { kAnyone, kKey, kOperators };
  enum Thread { kConnection, kWorker };  // what reads JSON or waits for a disk is the worker's
  std::string_view path, method;
  Access access;
  Thread thread;
  bool json_body;
  void (*answer)(Service&, HttpRequest&&, std::shared_ptr<Exchange>);
};

template <auto Member>
void Service::reply(Service& s, HttpRequest&& request, std::shared_ptr<Exchange> to) {
  to->respond((s.*Member)(request));
}

template <auto Action>
void Service::operate(Service& s, HttpRequest&&, std::shared_ptr<Exchange> to) {
  to->respond(s.speculator(Action));
}

// By path; one that ends with a slash takes all that begin so.
std::span<const Service::Route> Service::routes() {
  using Reply = std::shared_ptr<Exchange>;
  using enum Route::Access;
  using enum Route::Thread;
  static constexpr std::array kRoutes = {
      Route{"/v1/chat/completions", "POST", kKey, kConnection, true,
            [](Service& s, HttpRequest&& r, Reply to) { s.complete(std::move(r), to, true); }},
      Route{"/v1/completions", "POST", kKey, kConnection, true,
            [](Service& s, HttpRequest&& r, Reply to) { s.complete(std::move(r), to, false); }},
      Route{"/v1/models", "GET", kKey, kConnection, false,
            [](Service& s, HttpRequest&&, Reply to) { to->respond(s.models("")); }},
      Route{"/v1/models/", "GET", kKey, kConnection, false,
            [](Service& s, HttpRequest&& r, Reply to) {
              to->respond(s.models(r.path.substr(std::string_view("/v1/models/").size())));
            }},
      Route{"/health", "GET", kAnyone, kConnection, false, reply<&Service::health>},
      Route{"/v1/health", "GET", kAnyone, kConnection, false, reply<&Service::health>},
      Route{"/health/live", "GET", kAnyone, kConnection, false,
            [](Service&, HttpRequest&&, Reply to) {
              to->respond(json_response({{"status", "ok"}, {"live", true}}));
            }},
      Route{"/health/ready", "GET", kAnyone, kConnection, false, reply<&Service::health>},
      Route{"/metrics", "GET", kKey, kConnection, false, reply<&Service::metrics_text>},
      Route{"/stats", "GET", kKey, kConnection, false, reply<&Service::stats>},
      // A static page; the figures it asks for need the key.
      Route{"/dashboard", "GET", kAnyone, kConnection, false, reply<&Service::dashboard>},
      Route{"/v1/speculator", "GET", kOperators, kWorker, false,
            operate<[](LearnedControl&) -> Status { return Ok{}; }>},
      Route{"/v1/speculator/rollback", "POST", kOperators, kWorker, false,
            operate<[](LearnedControl& c) { return c.rollback(); }>},
      Route{"/v1/speculator/freeze", "POST", kOperators, kWorker, false,
            operate<[](LearnedControl& c) { return c.freeze(), Status(Ok{}); }>},
      Route{"/v1/speculator/unfreeze", "POST", kOperators, kWorker, false,
            operate<[](LearnedControl& c) { return c.unfreeze(), Status(Ok{}); }>},
      Route{"/version", "GET", kKey, kConnection, false, reply<&Service::version>},
      Route{"/tokenize", "POST", kKey, kWorker, true, reply<&Service::tokenize>},
      Route{"/detokenize", "POST", kKey, kWorker, true, reply<&Service::detokenize>},
  };
  return kRoutes;
}

const Service::Route* Service::find_route(std::string_view path) {
  for (const Route& route : routes())
    if (route.path == path || (route.path.ends_with('/') && path.starts_with(route.path)))
      return &route;
  return nullptr;
}

Service::Service(ServiceOptions options)
    : options_(std::move(options)), metrics_(options_.model_name) {}

void Service::publish(std::shared_ptr<const Backend> backend) {
  std::atomic_store(&backend_, std::move(backend));
}

void Service::sample() {
  if (auto served = backend()) history_.add(served->engine->stats());
}

std::optional<HttpReply> Service::answer_early(const HttpRequest& head) {
  const Route* route = find_route(head.path);
  if (!route)
    return error_response(ApiError::not_found(
        fmt::format("no route {} {}", head.method, head.path.substr(0, 200)), "unknown_route"));
  if (head.method == "OPTIONS") {
    HttpReply response;
    response.status = 204;
    response.headers = {
        {"Allow", fmt::format("{}, OPTIONS", route->method)},
        {"Access-Control-Allow-Methods", "GET, POST, OPTIONS"},
        {"Access-Control-Allow-Headers", "Authorization, Content-Type, X-Requested-With"},
        {"Access-Control-Max-Age", "86400"}};
    return response;
  }
  if (head.method != route->method && !(head.method == "HEAD" && route->method == "GET")) {
    HttpReply response = error_response(
        {405, "method_not_allowed",
         fmt::format("{}: found method {}, wanted {}", head.path, head.method, route->method)});
    response.headers.emplace_back("Allow", fmt::format("{}, OPTIONS", route->method));
    return response;
  }
  if (route->access != Route::kAnyone && options_.api_keys.required() &&
      !options_.api_keys.check(head.authorization))
    return error_response(
        {401, "invalid_api_key",
         "missing or unknown API key; wanted the header Authorization: Bearer KEY"});
  // Without keys an operator is who sits at this machine. Not a page in its browser, though (one
  // names its origin with every POST), and not whoever is behind a proxy on it.
  if (route->access == Route::kOperators && !options_.api_keys.required() &&
      (!head.loopback || head.forwarded || !head.origin.empty()))
    return error_response(
        {403, "operators_only",
         fmt::format("{}: for operators: from this machine itself, or with a key of --api-key-file",
                     route->path)});
  // Forms are what a browser may send across origins without asking; JSON is not.
  if (route->json_body && !head.content_type.empty() && head.content_type != "application/json")
    return error_response({415, "unsupported_media_type",
                           fmt::format("Content-Type: found {}, wanted application/json",
                                       head.content_type.substr(0, 100))});
  if (route->json_body)
    if (auto refusal = not_ready()) return refusal;
  return std::nullopt;
}

void Service::handle(HttpRequest request, std::shared_ptr<Exchange> exchange) {
  const Route* route = find_route(request.path);
  if (route->thread == Route::kConnection)
    return route->answer(*this, std::move(request), std::move(exchange));
  on_worker(exchange, [this, route, request = std::move(request), exchange]() mutable {
    route->answer(*this, std::move(request), std::move(exchange));
  });
}

void Service::on_worker(const std::shared_ptr<Exchange>& exchange, std::function<void()> work) {
  if (waiting_++ >= options_.max_admission_queue) {
    --waiting_;
    return exchange->respond(
        error_response(ApiError::overloaded("too many requests are waiting to be read")));
  }
  boost::asio::post(*worker_, [this, work = std::move(work)] {
    --waiting_;
    work();
  });
}

// A request's time begins before the queue.
void Service::complete(HttpRequest http, std::shared_ptr<Exchange> exchange, bool chat) {
  on_worker(exchange, [this, http = std::move(http), exchange, chat,
                       arrived = std::chrono::steady_clock::now()] {
    begin_completion(http, exchange, chat, arrived);
  });
}

void Service::begin_completion(const HttpRequest& http, const std::shared_ptr<Exchange>& exchange,
                               bool chat, std::chrono::steady_clock::time_point arrived) {
  auto served = backend();
  if (auto refusal = not_ready()) return exchange->respond(std::move(*refusal));
  RequestLimits limits;
  limits.n_vocab = served->n_vocab;
  limits.n_ctx = served->n_ctx;
  auto parsed = parse_completion_request(http.body, chat, limits);
  if (auto* error = std::get_if<ApiError>(&parsed))
    return exchange->respond(error_response(*error));
  CompletionRequest& request = std::get<CompletionRequest>(parsed);
  if (!request.model.empty() &&
      std::find(served->names.begin(), served->names.end(), request.model) == served->names.end())
    return exchange->respond(error_response(ApiError::not_found(
        fmt::format("model: found \"{}\", this server has {}", request.model.substr(0, 100),
                    fmt::join(served->names, ", ")),
        "model_not_found")));
  warn_ignored(request.ignored);
  std::string domain = request.domain;
  auto preparation = prepare(*served, std::move(request));
  if (auto* error = std::get_if<ApiError>(&preparation))
    return exchange->respond(error_response(*error));
  PreparedRequest& prepared = std::get<PreparedRequest>(preparation);
  if (options_.api_keys.required())
    prepared.key_id = options_.api_keys.check(http.authorization).value_or("");
  if (domain.empty()) domain = prepared.key_id.empty() ? "default" : prepared.key_id;
  prepared.domain = bounded_domain(domain);
  prepared.request.trace &= options_.api_keys.traced(prepared.key_id);
  if (!prepared.request.trace && served->learned)
    for (std::size_t i = 0;
         i < prepared.prompts.size() * static_cast<std::size_t>(prepared.request.n); ++i)
      served->learned->count_opted_out();
  auto job =
      std::make_shared<CompletionJob>(served, metrics_, exchange, std::move(prepared), arrived);
  exchange->post([job] { job->start(); });
}

std::optional<HttpReply> Service::not_ready() const {
  if (draining_) return error_response(ApiError::unavailable("the server is shutting down", 5));
  if (!backend()) return error_response(ApiError::unavailable("the model is loading", 5));
  return std::nullopt;
}

void Service::warn_ignored(const std::vector<std::string>& fields) {
  std::lock_guard lock(mutex_);
  for (const std::string& field : fields) {
    if (warned_fields_.size() >= kMaxWarnedFields || !warned_fields_.insert(field).second) continue;
    spdlog::warn("unknown request field ignored (said once): {}", field.substr(0, 80));
  }
}

// Labels are chosen by clients and live as long as the server: their number is bounded.
std::string Service::bounded_domain(const std::string& domain) {
  std::lock_guard lock(mutex_);
  if (domains_.count(domain)) return domain;
  if (domains_.size() >= kMaxDomains) return "other";
  domains_.insert(domain);
  return domain;
}

void Service::answered(const std::string& method, const std::string& path, int status,
                       double seconds) {
  // Unknown paths and methods share a label: their number is the client's choice.
  const Route* route = find_route(path);
  static const std::set<std::string> kMethods = {"GET", "POST",   "HEAD", "OPTIONS",
                                                 "PUT", "DELETE", "PATCH"};
  std::string_view label = route ? route->path : "other";
  if (label.ends_with('/')) label.remove_suffix(1);
  metrics_.http(std::string(label), kMethods.count(method) ? method : "other", status, seconds);
  if (status >= 400 && status != 404)
    spdlog::debug("{} {} -> {} in {:.3f} s", method, label, status, seconds);
}

HttpReply Service::health(const HttpRequest&) const {
  auto served = backend();
  if (!served)
    return error_response(
        ApiError::unavailable(fmt::format("Loading model ({:.0f} %)", 100 * loading_.load()), 5));
  if (draining_) return error_response(ApiError::unavailable("the server is shutting down", 5));
  double age = served->engine->heartbeat_age_s();
  if (age > options_.stall_after_s)
    return error_response(
        ApiError::unavailable(fmt::format("the engine has not turned for {:.1f} s", age), 5));
  return json_response(
      {{"status", "ok"}, {"live", true}, {"ready", true}, {"engine_heartbeat_age_s", age}});
}

HttpReply Service::models(std::string_view only) const {
  auto served = backend();
  if (!served) return *not_ready();
  json::array data;
  for (const std::string& name : served->names) {
    if (!only.empty() && only != name) continue;
    data.push_back(json::object{{"id", name},
                                {"object", "model"},
                                {"created", served->created_unix_s},
                                {"owned_by", "foretoken"},
                                {"max_model_len", served->n_ctx},
                                {"meta", json::object{{"architecture", served->architecture},
                                                      {"n_vocab", served->n_vocab},
                                                      {"n_ctx", served->n_ctx},
                                                      {"n_ctx_train", served->n_ctx_train},
                                                      {"n_params", served->n_params},
                                                      {"size", served->weight_bytes},
                                                      {"fingerprint", served->fingerprint_hex},
                                                      {"kv_cache_dtype", served->kv_mode}}}});
  }
  if (!only.empty()) {
    if (data.empty())
      return error_response(
          ApiError::not_found(fmt::format("no model {}", only.substr(0, 100)), "model_not_found"));
    return json_response(data[0].get_object());
  }
  return json_response({{"object", "list"}, {"data", std::move(data)}});
}

HttpReply Service::version(const HttpRequest&) const {
  json::object body{{"name", "foretoken"},
                    {"version", build_version()},
                    {"git", build_git()},
                    {"compiler", build_compiler()}};
  if (auto served = backend()) body["isa"] = served->isa;
  return json_response(body);
}

HttpReply Service::stats(const HttpRequest& request) const {
  auto served = backend();
  if (!served) return *not_ready();
  const LinkStats link = served->learned ? served->learned->link_stats() : LinkStats{};
  StatsContext context{served->names.front(), served->fingerprint_hex, served->kv_mode,
                       served->isa,           served->n_ctx,           draining_.load()};
  const EngineStats engine = served->engine->stats();
  json::object body = stats_json(engine, link, context);
  // Sums a client can keep: the speedup since then is the estimate from the difference to a later
  // copy.
  if (request.query.find("sums=1") != std::string::npos)
    body["speedup_sums"] =
        engine.speedup_sums ? json::value(engine.speedup_sums->text()) : json::value(nullptr);
  if (request.query.find("history=1") != std::string::npos) body["history"] = history_.json();
  return uncached(json_response(body));
}

// Lineage is synced to disk before it takes effect: for the worker, not a connection's thread.
HttpReply Service::speculator(Status (*action)(LearnedControl&)) const {
  auto served = backend();
  if (!served || !served->learned)
    return error_response(ApiError::unavailable("the model is loading", 5));
  LearnedControl& control = *served->learned;
  if (Status status = action(control); !status)
    return error_response({409, "nothing_to_roll_back", status.error().message});
  return uncached(json_response(speculator_json(control.state(), served->engine->stats())));
}

HttpReply Service::dashboard(const HttpRequest&) const {
  return {.content_type = "text/html; charset=utf-8",
          .headers = {{"Cache-Control", "no-cache"},
                      {"Content-Security-Policy",
                       "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
                       "connect-src 'self'; img-src data:"}},
          .body = dashboard_html()};
}

HttpReply Service::metrics_text(const HttpRequest&) {
  auto served = backend();
  std::optional<EngineStats> engine;
  if (served) engine = served->engine->stats();
  const LinkStats link = served && served->learned ? served->learned->link_stats() : LinkStats{};
  MetricsContext context{options_.model_name, served ? served->isa : "", served ? served->n_ctx : 0,
                         served ? served->kv_mode : "",
                         served ? served->engine->heartbeat_age_s() : 0};
  return {.content_type = "text/plain; version=0.0.4; charset=utf-8",
          .body = foretoken::metrics_text(engine ? &*engine : nullptr, link, context, metrics_)};
}

HttpReply Service::tokenize(const HttpRequest& request) const {
  auto served = backend();
  const auto parsed = parse_object(request.body);
  if (const auto* error = std::get_if<ApiError>(&parsed)) return error_response(*error);
  JsonFields fields(std::get<json::object>(parsed));
  bool chat = fields.find("messages") != nullptr;
  bool vllm_style = chat || fields.find("prompt") != nullptr;
  // llama.cpp's {content, add_special = false}, vLLM's {prompt | messages, add_special_tokens =
  // true}.
  bool add_special =
      fields.boolean("add_special", fields.boolean("add_special_tokens", vllm_style && !chat));
  bool parse_special = fields.boolean("parse_special", true);
  bool with_pieces =
      fields.boolean("with_pieces", false) || fields.boolean("return_token_strs", false);
  std::string text;
  if (chat) {
    auto completion =
        parse_completion_request(request.body, true, {served->n_vocab, served->n_ctx});
    if (auto* error = std::get_if<ApiError>(&completion)) return error_response(*error);
    if (!served->chat_template)
      return error_response(ApiError::unsupported("messages", "this model has no chat template"));
    auto& typed = std::get<CompletionRequest>(completion);
    auto rendered = served->chat_template->render(
        std::get<std::vector<ChatMessage>>(typed.prompts[0]), typed.add_generation_prompt);
    if (!rendered) return error_response(ApiError::invalid("messages", rendered.error().message));
    text = std::move(*rendered);
  } else {
    const char* name = vllm_style ? "prompt" : "content";
    if (!fields.find(name)) fields.missing("content", "a string (or prompt, or messages)");
    text = fields.string(name);
  }
  if (fields.error()) return error_response(*fields.error());
  auto tokens = served->tokenizer->encode(text, parse_special);
  if (!tokens)
    return error_response(ApiError::invalid(chat ? "messages" : "content", tokens.error().message));
  if (add_special && served->tokenizer->add_bos() && served->tokenizer->bos())
    tokens->insert(tokens->begin(), *served->tokenizer->bos());
  json::array out, pieces;
  for (TokenId token : *tokens) {
    if (with_pieces)
      out.push_back(json::object{{"id", token}, {"piece", token_text(*served->tokenizer, token)}});
    else
      out.push_back(token);
  }
  return json_response(
      {{"tokens", std::move(out)}, {"count", tokens->size()}, {"max_model_len", served->n_ctx}});
}

HttpReply Service::detokenize(const HttpRequest& request) const {
  auto served = backend();
  const auto parsed = parse_object(request.body);
  if (const auto* error = std::get_if<ApiError>(&parsed)) return error_response(*error);
  JsonFields fields(std::get<json::object>(parsed));
  const json::array* tokens = fields.array("tokens");
  if (!tokens) fields.missing("tokens", "an array of token ids");
  if (fields.error()) return error_response(*fields.error());
  StreamDecoder decoder(*served->tokenizer);
  std::string text;
  for (const json::value& entry : *tokens) {
    if (!entry.is_int64() || entry.get_int64() < 0 || entry.get_int64() >= served->n_vocab)
      return error_response(
          ApiError::invalid("tokens", fmt::format("tokens: found {}, wanted token ids from 0 to {}",
                                                  json_kind(entry), served->n_vocab - 1)));
    text += decoder.push(static_cast<TokenId>(entry.get_int64()));
  }
  text += decoder.finish();
  return json_response({{"content", text}, {"prompt", text}});
}

}  // namespace foretoken
