//! Models that another server runs: Docker Model Runner, llama.cpp's server, Ollama, vLLM.
//!
//! Whatever speaks the OpenAI API over HTTP on a base URL will do. Three things to know:
//!
//! - **Names.** The server is asked by the name as the caller spelled it, unless
//!   [`EndpointConfig::with_model`] gives the id that it uses. Ids that are no names (a file's path,
//!   a repository with capitals) are listed, and can be asked once they have been given a name.
//! - **Trust.** The server is believed about which model answers: llama.cpp's, for one, answers to
//!   any name with the model that it has. So [`Capabilities`] vouch for nothing.
//! - **Transport.** HTTP only, for now: an `https` base URL is `Unsupported`.
//!
//! | module | holds |
//! |---|---|
//! | `config` | [`EndpointConfig`], checked and taken apart |
//! | `http` | one request over one connection |
//! | `stream` | a streamed answer, read as its reader asks |

mod config;
mod http;
mod stream;

use std::sync::Arc;

use ::http::{HeaderValue, Method, Request, header};
use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::Full;
use serde::de::DeserializeOwned;

pub use self::config::EndpointConfig;
use self::config::Target;
use self::http::{Reply, within};
use crate::api::failure;
use crate::api::openai::{Answer, ChatBody, ModelList};
use crate::{
    Capabilities, ChatRequest, Completion, DeltaStream, Error, ErrorKind, ModelBackend, ModelInfo,
    ModelName, Result,
};

/// What is read of an error's body: its message is cut far below.
const MAX_ERROR_BODY: usize = 64 * 1024;

const LIST: &str = "list the models";
const CHAT: &str = "chat";

/// A [`ModelBackend`] that passes requests on to a server.
///
/// Holds no connection; each request makes its own and closes it. Needs a Tokio runtime with I/O and
/// time enabled. Clones share the configuration.
///
/// ```no_run
/// # async fn example() -> sandbox_models::Result<()> {
/// use sandbox_models::engine::endpoint::{Endpoint, EndpointConfig};
/// use sandbox_models::ModelBackendExt;
///
/// let runner = Endpoint::new(EndpointConfig::new("http://127.0.0.1:12434/engines/v1"))?;
/// let answer = runner.ask(&"ai/smollm2".parse()?, "Two and two?").await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Endpoint {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: EndpointConfig,
    target: Target,
}

impl Endpoint {
    /// Checks the configuration. Does not connect: the server may come later.
    ///
    /// # Errors
    ///
    /// `Unsupported` for `https`; `Invalid` for anything else that is no base URL, and for an API key
    /// that does not fit in a header.
    pub fn new(config: EndpointConfig) -> Result<Self> {
        let target = Target::new(&config)?;
        Ok(Self {
            inner: Arc::new(Inner { config, target }),
        })
    }
}

#[async_trait]
impl ModelBackend for Endpoint {
    fn capabilities(&self) -> Capabilities {
        Capabilities::none()
    }

    async fn models(&self) -> Result<Vec<ModelInfo>> {
        let answer = self
            .inner
            .whole(self.inner.request(Method::GET, "/models", None), LIST)
            .await;
        let list: ModelList = parse(&answer?, LIST)?;
        Ok(list
            .into_ids()
            .flat_map(|id| self.inner.named(id))
            .collect())
    }

    async fn chat(&self, request: ChatRequest) -> Result<Completion> {
        let answer = self
            .inner
            .whole(self.inner.chat_request(&request, false)?, CHAT)
            .await?;
        parse::<Answer>(&answer, CHAT)?.into_completion()
    }

    async fn chat_stream(&self, request: ChatRequest) -> Result<DeltaStream> {
        let inner = &self.inner;
        let request = inner.chat_request(&request, true)?;
        let reply = within(
            inner.config.answer_timeout,
            "begin to answer",
            CHAT,
            async { inner.accepted(request, CHAT).await },
        );
        let reply = reply.await?;
        if !reply.is("text/event-stream") {
            let reason = "the server answered with something else than an event stream";
            return Err(Error::new(ErrorKind::Protocol, CHAT, reason));
        }
        Ok(stream::deltas(Arc::clone(inner), reply.body))
    }
}

impl Inner {
    fn chat_request(&self, request: &ChatRequest, stream: bool) -> Result<Request<Full<Bytes>>> {
        request.check()?;
        let id = self.config.models.get(&request.model).map(String::as_str);
        let body = ChatBody::new(id.unwrap_or(request.model.spelling()), request, stream);
        let body = serde_json::to_vec(&body).map_err(|error| {
            Error::new(ErrorKind::Invalid, CHAT, "the request is not JSON").with_source(error)
        })?;
        Ok(self.request(Method::POST, "/chat/completions", Some(body)))
    }

    fn request(&self, method: Method, verb: &str, body: Option<Vec<u8>>) -> Request<Full<Bytes>> {
        let mut request = Request::builder()
            .method(method)
            .uri(self.target.path(verb))
            .header(header::HOST, &self.target.authority);
        if let Some(key) = &self.target.authorization {
            request = request.header(header::AUTHORIZATION, key);
        }
        if body.is_some() {
            let json = HeaderValue::from_static("application/json");
            request = request.header(header::CONTENT_TYPE, json);
        }
        let body = Full::new(Bytes::from(body.unwrap_or_default()));
        request
            .body(body)
            .expect("the path was cut from a URL, and the headers are values")
    }

    /// Sends a request and reads the answer, all of it, in the time that is allowed.
    async fn whole(
        &self,
        request: Request<Full<Bytes>>,
        operation: &'static str,
    ) -> Result<Vec<u8>> {
        within(self.config.answer_timeout, "answer", operation, async {
            self.accepted(request, operation)
                .await?
                .body
                .whole(self.config.max_body)
                .await
        })
        .await
    }

    /// Sends a request; an answer that is no success becomes an error.
    async fn accepted(
        &self,
        request: Request<Full<Bytes>>,
        operation: &'static str,
    ) -> Result<Reply> {
        let reply = http::send(&self.target, &self.config, request, operation).await?;
        if reply.status.is_success() {
            return Ok(reply);
        }
        let status = reply.status.as_u16();
        let said = reply.body.beginning(MAX_ERROR_BODY).await;
        Err(self.redacted(failure::from_status(status, &said, operation)))
    }

    /// Removes the key from what the server said.
    fn redacted(&self, error: Error) -> Error {
        match self.config.key() {
            Some(key) => error.without(key),
            None => error,
        }
    }

    /// Finds the names of a listed model: those that it was given, else its id if that is one.
    fn named(&self, id: String) -> Vec<ModelInfo> {
        let given = self.config.models.iter().filter(|(_, given)| **given == id);
        let mut infos: Vec<ModelInfo> = given
            .map(|(name, _)| ModelInfo::new(id.clone()).with_name(name.clone()))
            .collect();
        if infos.is_empty() {
            // A name that was given to another model does not mean this one.
            let own = ModelName::parse(&id).ok();
            let own = own.filter(|name| !self.config.models.contains_key(name));
            infos.push(ModelInfo { id, name: own });
        }
        infos
    }
}

fn parse<T: DeserializeOwned>(body: &[u8], operation: &'static str) -> Result<T> {
    serde_json::from_slice(body).map_err(|error| {
        let reason = "the server's answer does not have the API's shape";
        Error::new(ErrorKind::Protocol, operation, reason).with_source(error)
    })
}
