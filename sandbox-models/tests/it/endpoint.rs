//! The endpoint against a real server on loopback: the shapes in use, and the bad days.

use std::time::Duration;

use futures::StreamExt;
use sandbox_models::engine::endpoint::{Endpoint, EndpointConfig};
use sandbox_models::testing::contract;
use sandbox_models::{
    ChatRequest, Completion, Delta, Error, ErrorKind, FinishReason, Message, ModelBackend,
    ModelBackendExt, ModelName, Usage,
};
use serde_json::json;
use tokio::net::TcpListener;

use crate::in_time;
use crate::server::{Answer, Server, Step};

const HELLO: &str = r#"{"choices":[{"index":0,"delta":{"role":"assistant","content":"Héllo"}}]}"#;
const WORLD: &str = r#"{"choices":[{"index":0,"delta":{"content":" 🌍"},"finish_reason":null}]}"#;
const STOP: &str = r#"{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#;
const USAGE: &str = r#"{"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":2}}"#;
const STREAM: [&str; 5] = [HELLO, WORLD, STOP, USAGE, "[DONE]"];

fn model() -> ModelName {
    "ai/smollm2".parse().expect("valid")
}

fn request() -> ChatRequest {
    ChatRequest::new(model()).with_message(Message::user("hi"))
}

fn config(server: &Server) -> EndpointConfig {
    EndpointConfig::new(&server.url)
}

fn endpoint(server: &Server) -> Endpoint {
    Endpoint::new(config(server)).expect("a valid configuration")
}

fn whole() -> serde_json::Value {
    json!({
        "object": "chat.completion",
        "choices": [{
            "index": 0, "finish_reason": "stop",
            "message": {"role": "assistant", "content": "Héllo 🌍"},
        }],
        "usage": {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11},
    })
}

fn expected() -> Completion {
    Completion::new("Héllo 🌍", FinishReason::Stop).with_usage(Usage::new(9, 2))
}

/// A server that does what real ones do, streams in pieces of `size` bytes.
async fn well_behaved(size: usize) -> Server {
    Server::start(move |asked| match asked.path.as_str() {
        "/v1/models" => Answer::json(
            200,
            json!({"object": "list", "data": [
                {"id": "ai/smollm2", "object": "model"},
                {"id": "/models/Tiny.gguf", "object": "model", "owned_by": "me"},
            ]}),
        ),
        "/v1/chat/completions" if asked.body["stream"] == true => Answer::events(&STREAM, size),
        "/v1/chat/completions" => Answer::json(200, whole()),
        _ => Answer::json(404, json!({"error": {"message": "no such path"}})),
    })
    .await
}

/// Asks both ways a server that gives one answer; gives both errors.
async fn both_errors(answer: Answer, config: impl Fn(&Server) -> EndpointConfig) -> [Error; 2] {
    let server = Server::always(answer).await;
    let endpoint = Endpoint::new(config(&server)).expect("a valid configuration");
    in_time(async {
        let whole = endpoint.chat(request()).await.expect_err("whole");
        let streamed = endpoint
            .chat_collected(request())
            .await
            .expect_err("streamed");
        [whole, streamed]
    })
    .await
}

#[tokio::test]
async fn it_keeps_the_contract() {
    let server = well_behaved(7).await;
    in_time(contract(&endpoint(&server), &model())).await;
    in_time(server.idle()).await;
}

#[tokio::test]
async fn both_ways_give_the_same_answer_however_the_bytes_are_cut() {
    for size in [1, 2, 3, 5, 64, 4096] {
        let server = well_behaved(size).await;
        let endpoint = endpoint(&server);
        let streamed = in_time(endpoint.chat_collected(request()))
            .await
            .expect("streamed");
        assert_eq!(streamed, expected(), "in pieces of {size}");
        let whole = in_time(endpoint.chat(request())).await.expect("whole");
        assert_eq!(whole, expected());
    }
}

#[tokio::test]
async fn a_piece_is_handed_out_before_the_next_one_is_there() {
    let server = Server::always(Answer::events(&[HELLO], 9).then(Step::Stall)).await;
    in_time(async {
        let mut stream = endpoint(&server)
            .chat_stream(request())
            .await
            .expect("it begins");
        let first = stream
            .next()
            .await
            .expect("a piece")
            .expect("without error");
        assert_eq!(first, Delta::Text("Héllo".into()));
    })
    .await;
}

#[tokio::test]
async fn the_request_says_what_was_asked_for_and_who_asks() {
    let server = well_behaved(64).await;
    let big: ModelName = "hf.co/Org/Big".parse().expect("valid");
    let config = config(&server)
        .with_api_key("k-1")
        .with_model(big.clone(), "Org/Big");
    let endpoint = Endpoint::new(config).expect("valid");
    in_time(endpoint.chat(request().with_seed(7)))
        .await
        .expect("an answer");
    in_time(endpoint.ask(&big, "hi")).await.expect("an answer");
    let asked = server.asked();
    assert_eq!(asked[0].body["model"], "ai/smollm2", "as it was spelled");
    assert_eq!(asked[0].body["seed"], 7);
    assert_eq!(asked[1].body["model"], "Org/Big", "as the server calls it");
    assert_eq!(asked[0].headers["authorization"], "Bearer k-1");
    assert_eq!(asked[0].headers["content-type"], "application/json");
    assert_eq!(
        format!(
            "http://{}",
            asked[0].headers["host"].to_str().expect("text")
        ),
        server.url
    );
}

#[tokio::test]
async fn models_are_listed_by_id_and_by_the_names_they_were_given() {
    let server = well_behaved(64).await;
    let tiny: ModelName = "tiny".parse().expect("valid");
    let plain = in_time(endpoint(&server).models()).await.expect("a list");
    let names: Vec<_> = plain.iter().map(|info| info.name.clone()).collect();
    assert_eq!(names, [Some(model()), None]);
    assert_eq!(plain[1].id, "/models/Tiny.gguf");

    let named = config(&server).with_model(tiny.clone(), "/models/Tiny.gguf");
    let named = Endpoint::new(named).expect("valid");
    assert!(in_time(named.offers(&tiny)).await.expect("a list"));
}

#[tokio::test]
async fn an_error_keeps_its_kind_and_the_servers_words() {
    let body = json!({"error": {
        "message": "too long", "type": "invalid_request_error", "code": "context_length_exceeded",
    }});
    for error in both_errors(Answer::json(400, body), config).await {
        assert_eq!(error.kind(), ErrorKind::Invalid);
        let said = error.server().expect("the server's words");
        assert_eq!(said.code.as_deref(), Some("context_length_exceeded"));
        assert_eq!(
            (said.status, said.message.as_str()),
            (Some(400), "too long")
        );
        assert!(
            !error.to_string().contains("too long"),
            "a message never repeats its source"
        );
    }
    for (status, kind) in [(404, ErrorKind::NotFound), (503, ErrorKind::Exhausted)] {
        for error in both_errors(Answer::json(status, "gone"), config).await {
            assert_eq!(error.kind(), kind);
        }
    }
}

#[tokio::test]
async fn an_echoed_key_is_removed() {
    let body = json!({"error": {"message": "Incorrect API key: hunter2."}});
    let keyed = |server: &Server| config(server).with_api_key("hunter2");
    let refused = both_errors(Answer::json(401, &body), keyed).await;
    let [_, in_stream] = both_errors(Answer::events(&[&body.to_string()], 50), keyed).await;
    for error in refused.into_iter().chain([in_stream]) {
        let said = error.server().expect("the server's words");
        assert_eq!(said.message, "Incorrect API key: [redacted].");
        assert!(!format!("{error:?}").contains("hunter2"));
    }
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let elsewhere = well_behaved(64).await;
    let answer = Answer::json(307, "").header("location", format!("{}/v1/x", elsewhere.url));
    for error in both_errors(answer, config).await {
        assert_eq!(error.kind(), ErrorKind::Protocol);
    }
    assert!(elsewhere.asked().is_empty());
}

#[tokio::test]
async fn an_error_in_the_middle_comes_after_what_was_said() {
    let failed = r#"{"error":{"message":"slot lost","code":500}}"#;
    let server = Server::always(Answer::events(&[HELLO, failed], 11)).await;
    in_time(async {
        let mut stream = endpoint(&server)
            .chat_stream(request())
            .await
            .expect("it begins");
        assert!(stream.next().await.expect("a piece").is_ok());
        let error = stream
            .next()
            .await
            .expect("an error")
            .expect_err("the server failed");
        assert_eq!(error.kind(), ErrorKind::Io);
        assert_eq!(error.server().expect("its words").message, "slot lost");
        assert!(stream.next().await.is_none());
        assert!(
            stream.next().await.is_none(),
            "an ended stream repeats its end"
        );
        server.idle().await;
    })
    .await;
}

#[tokio::test]
async fn a_server_that_stalls_is_a_time_out_and_is_left() {
    let short = Duration::from_millis(100);
    let stalled = Answer::events(&[HELLO], 64).then(Step::Stall);
    let server = Server::always(stalled).await;
    let config = config(&server)
        .with_idle_timeout(short)
        .with_answer_timeout(short);
    let endpoint = Endpoint::new(config).expect("valid");
    in_time(async {
        let mut stream = endpoint.chat_stream(request()).await.expect("it begins");
        assert!(stream.next().await.expect("a piece").is_ok());
        let error = stream
            .next()
            .await
            .expect("an error")
            .expect_err("it stalls");
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        server.idle().await;
        let error = endpoint.chat(request()).await.expect_err("it stalls");
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        server.idle().await;
    })
    .await;
}

#[tokio::test]
async fn the_first_byte_may_take_longer_than_a_pause() {
    let server = Server::always(Answer::events(&[], 64).then(Step::Stall)).await;
    let config = config(&server)
        .with_idle_timeout(Duration::from_millis(1))
        .with_answer_timeout(Duration::from_millis(200));
    let endpoint = Endpoint::new(config).expect("valid");
    let error = in_time(endpoint.chat_collected(request()))
        .await
        .expect_err("it stalls");
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    assert!(
        error.to_string().contains("begin the stream within 200ms"),
        "{error}"
    );
}

#[tokio::test]
async fn a_server_that_accepts_and_says_nothing_is_a_time_out() {
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let url = format!("http://{}", silent.local_addr().expect("bound"));
    let config = EndpointConfig::new(url).with_answer_timeout(Duration::from_millis(100));
    let endpoint = Endpoint::new(config).expect("valid");
    let error = in_time(endpoint.models()).await.expect_err("silence");
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    let error = in_time(endpoint.chat_stream(request()))
        .await
        .map(drop)
        .expect_err("silence");
    assert_eq!(error.kind(), ErrorKind::TimedOut);
}

#[tokio::test]
async fn a_server_that_is_not_there_is_disconnected() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    drop(listener);
    let endpoint = Endpoint::new(EndpointConfig::new(url)).expect("valid");
    let error = in_time(endpoint.models())
        .await
        .expect_err("nobody listens");
    assert_eq!(error.kind(), ErrorKind::Disconnected);
}

#[tokio::test]
async fn a_server_that_dies_in_the_middle_is_disconnected() {
    let half = Answer::events(&[HELLO], 64).then(Step::Abort);
    for error in both_errors(half, config).await {
        assert_eq!(error.kind(), ErrorKind::Disconnected, "{error:?}");
    }
}

#[tokio::test]
async fn a_stream_that_ends_early_but_cleanly_is_disconnected() {
    let server = Server::always(Answer::events(&[HELLO, WORLD], 64)).await;
    let error = in_time(endpoint(&server).chat_collected(request()))
        .await
        .expect_err("cut");
    assert_eq!(error.kind(), ErrorKind::Disconnected);
}

#[tokio::test]
async fn what_is_too_large_is_exhausted_and_not_read() {
    let small = |server: &Server| config(server).with_max_body(4096).with_max_event(4096);
    let huge = format!("{{\"x\":\"{}", "a".repeat(1 << 20));
    let [whole, _] = both_errors(Answer::json(200, &huge).then(Step::Stall), small).await;
    assert_eq!(whole.kind(), ErrorKind::Exhausted);
    let [_, streamed] =
        both_errors(Answer::events(&[&huge], 1 << 16).then(Step::Stall), small).await;
    assert_eq!(streamed.kind(), ErrorKind::Exhausted);
}

#[tokio::test]
async fn an_endless_head_breaks_the_protocol() {
    let head = Answer::json(200, whole()).header("x-long", "a".repeat(200_000));
    for error in both_errors(head, config).await {
        assert_eq!(error.kind(), ErrorKind::Protocol, "{error:?}");
    }
}

#[tokio::test]
async fn an_endless_error_page_is_cut() {
    let endless = Answer::json(500, "a".repeat(1 << 20)).then(Step::Stall);
    for error in both_errors(endless, config).await {
        assert_eq!(error.kind(), ErrorKind::Io);
    }
}

#[tokio::test]
async fn what_is_not_the_api_breaks_the_protocol() {
    for answer in [
        Answer::json(200, "<html>"),
        Answer::json(200, "{\"choices\": 3}"),
        Answer::events(&["junk"], 64),
    ] {
        for error in both_errors(answer, config).await {
            assert_eq!(error.kind(), ErrorKind::Protocol, "{error:?}");
        }
    }
}

#[tokio::test]
async fn dropping_a_stream_or_a_question_closes_its_connection() {
    let server = Server::always(Answer::events(&[HELLO], 64).then(Step::Stall)).await;
    let endpoint = endpoint(&server);
    in_time(async {
        let mut stream = endpoint.chat_stream(request()).await.expect("it begins");
        assert!(stream.next().await.expect("a piece").is_ok());
        assert_eq!(
            server.connections(),
            1,
            "the connection is open while somebody reads"
        );
        drop(stream);
        server.idle().await;

        let mut asking = Box::pin(endpoint.chat(request()));
        while server.asked().len() < 2 {
            assert!(futures::poll!(&mut asking).is_pending());
            tokio::task::yield_now().await;
        }
        assert_eq!(
            server.connections(),
            1,
            "the connection is open while somebody waits"
        );
        drop(asking);
        server.idle().await;
    })
    .await;
}

#[tokio::test]
async fn a_connection_is_closed_when_the_answer_is_done() {
    let server = well_behaved(64).await;
    in_time(async {
        let mut stream = endpoint(&server)
            .chat_stream(request())
            .await
            .expect("it begins");
        while stream.next().await.is_some() {}
        // The stream is still held: its end has closed the connection, not its drop.
        server.idle().await;
        drop(stream);
    })
    .await;
}
