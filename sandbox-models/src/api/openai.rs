//! The shapes of the OpenAI API, as far as we speak it, and their translation.
//!
//! Answers are read leniently (unknown fields, absent optional ones, `null`), because each server
//! leaves out something else; requests are written strictly (nothing that was not asked for).

use serde::{Deserialize, Serialize};

use crate::{
    ChatRequest, Completion, Delta, Error, ErrorKind, FinishReason, Message, Result, Role, Usage,
};

/// `POST …/chat/completions`, as sent.
#[derive(Debug, Serialize)]
pub(crate) struct ChatBody<'a> {
    model: &'a str,
    messages: Vec<MessageBody<'a>>,
    stream: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    stream_options: Option<StreamOptions>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_p: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    seed: Option<u32>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    stop: &'a [String],
}

#[derive(Debug, Serialize)]
struct MessageBody<'a> {
    role: &'static str,
    content: &'a str,
}

#[derive(Debug, Serialize)]
struct StreamOptions {
    include_usage: bool,
}

impl<'a> ChatBody<'a> {
    /// Writes the request for the model that the server calls `id`.
    pub(crate) fn new(id: &'a str, request: &'a ChatRequest, stream: bool) -> Self {
        Self {
            model: id,
            messages: request.messages.iter().map(MessageBody::from).collect(),
            stream,
            stream_options: stream.then_some(StreamOptions {
                include_usage: true,
            }),
            max_tokens: request.max_tokens,
            temperature: request.temperature,
            top_p: request.top_p,
            seed: request.seed,
            stop: &request.stop,
        }
    }
}

impl<'a> From<&'a Message> for MessageBody<'a> {
    fn from(message: &'a Message) -> Self {
        let role = match message.role {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
        };
        Self {
            role,
            content: &message.content,
        }
    }
}

/// `GET …/models`, as answered.
#[derive(Debug, Deserialize)]
pub(crate) struct ModelList {
    // Ollama says `null` where there are none.
    data: Option<Vec<ModelEntry>>,
}

#[derive(Debug, Deserialize)]
struct ModelEntry {
    id: String,
}

impl ModelList {
    /// Returns the ids, as the server spells them.
    pub(crate) fn into_ids(self) -> impl Iterator<Item = String> {
        self.data
            .unwrap_or_default()
            .into_iter()
            .map(|entry| entry.id)
    }
}

/// A whole answer, or one chunk of a streamed one: they differ in one name.
#[derive(Debug, Deserialize)]
pub(crate) struct Answer {
    #[serde(default)]
    choices: Vec<Choice>,
    usage: Option<UsageBody>,
}

#[derive(Debug, Deserialize)]
struct Choice {
    #[serde(default)]
    index: u32,
    #[serde(alias = "delta")]
    message: Option<Content>,
    finish_reason: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
struct Content {
    content: Option<String>,
    // Ollama's name for it is the shorter one.
    #[serde(alias = "reasoning")]
    reasoning_content: Option<String>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
pub(crate) struct UsageBody {
    #[serde(default)]
    prompt_tokens: u64,
    #[serde(default)]
    completion_tokens: u64,
}

impl From<UsageBody> for Usage {
    fn from(body: UsageBody) -> Self {
        Self::new(body.prompt_tokens, body.completion_tokens)
    }
}

impl Answer {
    /// Reads the answer as a whole one.
    pub(crate) fn into_completion(self) -> Result<Completion> {
        let incomplete =
            |reason| Error::new(ErrorKind::Protocol, "read the server's answer", reason);
        let choice = first(self.choices).ok_or_else(|| incomplete("it holds no choice"))?;
        let finish = choice
            .finish_reason
            .ok_or_else(|| incomplete("it has no finish_reason"))?;
        let content = choice.message.unwrap_or_default();
        Ok(Completion {
            text: content.content.unwrap_or_default(),
            reasoning: content.reasoning_content.unwrap_or_default(),
            finish: finish_reason(finish),
            usage: self.usage.map(Usage::from),
        })
    }

    /// Reads the answer as a chunk: what it adds, then the usage where it has one.
    pub(crate) fn into_deltas(self) -> (impl Iterator<Item = Delta>, Option<Usage>) {
        let usage = self.usage.map(Usage::from);
        let (content, finish) = match first(self.choices) {
            Some(choice) => (choice.message.unwrap_or_default(), choice.finish_reason),
            None => (Content::default(), None),
        };
        let some = |text: Option<String>| text.filter(|text| !text.is_empty());
        let deltas = [
            some(content.reasoning_content).map(Delta::Reasoning),
            some(content.content).map(Delta::Text),
            some(finish).map(|reason| Delta::Finish(finish_reason(reason))),
        ];
        (deltas.into_iter().flatten(), usage)
    }
}

/// Returns the choice that was asked for; we never ask for more than one.
fn first(choices: Vec<Choice>) -> Option<Choice> {
    choices.into_iter().find(|choice| choice.index == 0)
}

fn finish_reason(word: String) -> FinishReason {
    match word.as_str() {
        "stop" => FinishReason::Stop,
        "length" => FinishReason::Length,
        "content_filter" => FinishReason::ContentFilter,
        _ => FinishReason::Other(word),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn request() -> ChatRequest {
        ChatRequest::new("ai/smollm2".parse().expect("valid"))
            .with_message(Message::system("be brief"))
            .with_message(Message::user("hi"))
    }

    #[test]
    fn only_what_was_asked_for_is_sent() {
        let body = serde_json::to_value(ChatBody::new("m", &request(), false)).expect("JSON");
        let messages = json!([
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "hi"},
        ]);
        assert_eq!(
            body,
            json!({"model": "m", "messages": messages, "stream": false})
        );
    }

    #[test]
    fn everything_that_was_asked_for_is_sent() {
        let request = request()
            .with_max_tokens(7)
            .with_temperature(0.5)
            .with_top_p(0.25)
            .with_seed(1)
            .with_stop("END");
        let body = serde_json::to_value(ChatBody::new("m", &request, true)).expect("JSON");
        let expected = json!({
            "max_tokens": 7, "temperature": 0.5, "top_p": 0.25, "seed": 1, "stop": ["END"],
            "stream": true, "stream_options": {"include_usage": true},
        });
        for (key, value) in expected.as_object().expect("an object") {
            assert_eq!(body.get(key), Some(value), "{key}");
        }
    }

    #[test]
    fn an_answer_is_read_with_all_that_servers_add_and_leave_out() {
        let answer = json!({
            "id": "x", "object": "chat.completion", "timings": {},
            "choices": [{
                "index": 0, "finish_reason": "length", "logprobs": null,
                "message": {"role": "assistant", "content": null, "reasoning_content": "hm"},
            }],
            "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
        });
        let answer: Answer = serde_json::from_value(answer).expect("the shape");
        let expected = Completion::new("", FinishReason::Length)
            .with_reasoning("hm")
            .with_usage(Usage::new(3, 2));
        assert_eq!(answer.into_completion().expect("whole"), expected);
    }

    #[test]
    fn an_answer_without_a_choice_or_an_end_breaks_the_protocol() {
        for answer in [
            json!({}),
            json!({"choices": [{"message": {"content": "a"}}]}),
        ] {
            let answer: Answer = serde_json::from_value(answer).expect("the shape");
            let error = answer.into_completion().expect_err("incomplete");
            assert_eq!(error.kind(), ErrorKind::Protocol);
        }
    }

    #[test]
    fn a_list_of_no_models_may_be_null() {
        let list: ModelList = serde_json::from_str(r#"{"object":"list","data":null}"#).expect("ok");
        assert_eq!(list.into_ids().count(), 0);
    }
}
