//! What every back end must do, as one function that panics where one does not.

use futures::{StreamExt, future};

use crate::{
    ChatRequest, Completion, Delta, DeltaStream, ErrorKind, Message, ModelBackend, ModelBackendExt,
    ModelName,
};

/// Checks that `backend` keeps the promises of [`ModelBackend`] and of its own
/// [`Capabilities`](crate::Capabilities), by asking `model`, which it has.
///
/// Asks about a dozen short questions, two of them at once. It sets no time limit: a test that calls
/// it does.
///
/// # Panics
///
/// If a promise is broken, naming it.
pub async fn contract(backend: &dyn ModelBackend, model: &ModelName) {
    lists_its_models(backend, model).await;
    refuses_what_no_model_can_answer(backend, model).await;
    knows_what_it_does_not_have(backend).await;
    answers_whole(backend, model).await;
    answers_in_pieces(backend, model).await;
    survives_a_reader_that_leaves(backend, model).await;
    serves_two_at_once(backend, model).await;
    repeats_itself_if_it_says_so(backend, model).await;
}

fn question(model: &ModelName) -> ChatRequest {
    ChatRequest::new(model.clone())
        .with_message(Message::user("Say hello to the world."))
        .with_temperature(0.0)
        .with_max_tokens(64)
}

async fn lists_its_models(backend: &dyn ModelBackend, model: &ModelName) {
    let listed = backend.models().await.expect("the models are listed");
    assert!(
        listed.iter().all(|info| !info.id.is_empty()),
        "a listed model has no id: {listed:?}"
    );
    let offered = backend
        .offers(model)
        .await
        .expect("the models are listed again");
    assert!(offered, "{model} is not listed: {listed:?}");
}

async fn refuses_what_no_model_can_answer(backend: &dyn ModelBackend, model: &ModelName) {
    let mut silent = question(model);
    silent.messages.clear();
    for request in [silent, question(model).with_temperature(f32::NAN)] {
        let whole = backend.chat(request.clone()).await.map(drop);
        let streamed = backend.chat_stream(request.clone()).await.map(drop);
        for answer in [whole, streamed] {
            let kind = answer.map_err(|error| error.kind());
            assert_eq!(
                kind,
                Err(ErrorKind::Invalid),
                "a bad request is Invalid: {request:?}"
            );
        }
    }
}

async fn knows_what_it_does_not_have(backend: &dyn ModelBackend) {
    if !backend.capabilities().checks_names {
        return;
    }
    let missing = ModelName::parse("nowhere.invalid/no/such-model").expect("a valid name");
    let whole = backend.chat(question(&missing)).await.map(drop);
    let streamed = backend.chat_stream(question(&missing)).await.map(drop);
    for answer in [whole, streamed] {
        let kind = answer.map_err(|error| error.kind());
        assert_eq!(
            kind,
            Err(ErrorKind::NotFound),
            "a model that is not there is NotFound"
        );
    }
}

async fn answers_whole(backend: &dyn ModelBackend, model: &ModelName) {
    let answer = backend.chat(question(model)).await.expect("a whole answer");
    check_answer(backend, &answer);
}

async fn answers_in_pieces(backend: &dyn ModelBackend, model: &ModelName) {
    let mut stream = backend
        .chat_stream(question(model))
        .await
        .expect("a streamed answer");
    let deltas = drain(&mut stream).await;
    let end = deltas
        .iter()
        .position(|delta| matches!(delta, Delta::Finish(_)));
    let end = end.expect("a stream that ends well has a Finish");
    for delta in &deltas[..end] {
        let (Delta::Text(text) | Delta::Reasoning(text)) = delta else {
            panic!("before the Finish there is text alone, not {delta:?}");
        };
        assert!(!text.is_empty(), "no piece of text is empty");
    }
    let after = &deltas[end + 1..];
    assert!(
        matches!(after, [] | [Delta::Usage(_)]),
        "after the Finish there is at most one Usage: {after:?}"
    );
    assert!(
        stream.next().await.is_none(),
        "an ended stream repeats its end"
    );

    let collected = backend
        .chat_collected(question(model))
        .await
        .expect("a collected answer");
    check_answer(backend, &collected);
}

async fn survives_a_reader_that_leaves(backend: &dyn ModelBackend, model: &ModelName) {
    let mut stream = backend
        .chat_stream(question(model))
        .await
        .expect("a streamed answer");
    let first = stream.next().await.expect("a first piece");
    first.expect("a first piece without error");
    drop(stream);
    let mut asking = backend.chat(question(model));
    // Begun, so that there is something to give up.
    drop(futures::poll!(&mut asking));
    drop(asking);
    let answer = backend
        .chat(question(model))
        .await
        .expect("an answer after two readers left");
    check_answer(backend, &answer);
}

async fn serves_two_at_once(backend: &dyn ModelBackend, model: &ModelName) {
    let one = backend
        .chat_stream(question(model))
        .await
        .expect("a first stream");
    let two = backend
        .chat_stream(question(model))
        .await
        .expect("a second stream beside it");
    let (mut one, mut two) = (one, two);
    for deltas in <[_; 2]>::from(future::join(drain(&mut one), drain(&mut two)).await) {
        assert!(
            deltas.iter().any(|delta| matches!(delta, Delta::Finish(_))),
            "both are whole"
        );
    }
}

async fn repeats_itself_if_it_says_so(backend: &dyn ModelBackend, model: &ModelName) {
    if !backend.capabilities().repeatable {
        return;
    }
    let first = backend.chat(question(model)).await.expect("an answer");
    let again = backend
        .chat_collected(question(model))
        .await
        .expect("the answer again");
    assert_eq!(
        first.text, again.text,
        "at temperature 0 the text is the same"
    );
}

fn check_answer(backend: &dyn ModelBackend, answer: &Completion) {
    let said = answer.text.len() + answer.reasoning.len();
    assert!(said > 0, "the model says something: {answer:?}");
    let told = answer.usage.is_some();
    assert!(
        told || !backend.capabilities().reports_usage,
        "the usage is reported: {answer:?}"
    );
}

async fn drain(stream: &mut DeltaStream) -> Vec<Delta> {
    let mut deltas = Vec::new();
    while let Some(delta) = stream.next().await {
        deltas.push(delta.expect("a piece without error"));
    }
    deltas
}
