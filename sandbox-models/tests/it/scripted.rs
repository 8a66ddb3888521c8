//! The fake keeps the contract, and its script.

use futures::StreamExt;
use sandbox_models::testing::{Reply, Scripted, contract};
use sandbox_models::{
    ChatRequest, ErrorKind, FinishReason, Message, ModelBackend, ModelBackendExt, ModelName,
};

use crate::in_time;

fn model() -> ModelName {
    "ai/smollm2".parse().expect("valid")
}

fn request(text: &str) -> ChatRequest {
    ChatRequest::new(model()).with_message(Message::user(text))
}

#[tokio::test]
async fn it_keeps_the_contract() {
    let backend = Scripted::new(model()).with_last_reply(Reply::text("Hello, world."));
    in_time(contract(&backend, &model())).await;
}

#[tokio::test]
async fn it_answers_in_the_scripts_order_and_records_what_it_was_asked() {
    let backend = Scripted::new(model())
        .with_reply(Reply::text("one"))
        .with_reply(Reply::text("two three").then_finish(FinishReason::Length));
    assert_eq!(backend.ask(&model(), "a").await.expect("scripted"), "one");
    let second = backend.chat(request("b c d")).await.expect("scripted");
    assert_eq!(
        (second.text.as_str(), &second.finish),
        ("two three", &FinishReason::Length)
    );
    let usage = second.usage.expect("it counts");
    assert_eq!((usage.prompt_tokens, usage.completion_tokens), (3, 2));
    let ended = backend
        .chat(request("e"))
        .await
        .expect_err("the script has ended");
    assert_eq!(ended.kind(), ErrorKind::Exhausted);
    assert_eq!(backend.requests(), [request("a"), request("b c d")]);
}

#[tokio::test]
async fn it_fails_and_stalls_where_the_script_says_so() {
    let backend = Scripted::new(model())
        .with_reply(Reply::text("half").then_fail(ErrorKind::Disconnected))
        .with_reply(Reply::text("half").then_stall());
    let mut broken = backend.chat_stream(request("a")).await.expect("it begins");
    assert!(broken.next().await.expect("a piece").is_ok());
    let error = broken
        .next()
        .await
        .expect("an error")
        .expect_err("as scripted");
    assert_eq!(error.kind(), ErrorKind::Disconnected);
    assert!(broken.next().await.is_none());

    let mut stalled = backend.chat_stream(request("a")).await.expect("it begins");
    assert!(stalled.next().await.expect("a piece").is_ok());
    assert!(futures::poll!(stalled.next()).is_pending());
}
