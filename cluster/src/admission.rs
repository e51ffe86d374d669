//! Admission: an AdmissionReview in, the answer out. Refuses what translation would leave out, by asking it.
//!
//! Nothing here decides what is right; that is [`Translator::review`](crate::translate::Translator::review). Here is
//! only who is asked, and in which words it is answered. Nothing is remembered, so a dry run costs nothing. The
//! configuration is whatever this process has been told of so far: of two objects that contradict each other and come
//! at the same moment both may be admitted, and the later one is left out by translation as ever.

use ferrogate_core::{model::ObjectKey, snapshot::Problem};
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};

use crate::{
    objects::{Id, Kind, OUR_API},
    translate::{Proposal, Review},
};

/// The largest body that is read, in bytes. The API server takes no object beyond 3 MiB, and sends the old one along.
pub const MAX_BODY: usize = 8 * 1024 * 1024;

/// How many questions may wait; whoever asks more waits.
const QUESTIONS: usize = 16;
/// How many problems an answer names.
const MAX_NAMED: usize = 16;
/// How many warnings an answer carries. The API server cuts off what is more than 4096 bytes together.
const MAX_WARNINGS: usize = 8;
/// How long a warning may be, in bytes; the API server cuts off the rest.
const MAX_WARNING: usize = 256;

/// Why a body is not a question.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAReview {
    /// Not JSON.
    #[error("the body is not JSON: {0}")]
    Syntax(String),
    /// JSON, but nothing that is answered here.
    #[error("the body is not an admission.k8s.io/v1 AdmissionReview with a request: {0}")]
    Shape(&'static str),
}

/// Why an object is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It would be left out, or another would.
    #[error("{}", named(.0))]
    LeftOut(Vec<Problem>),
    /// It would leave others without what they name.
    #[error("{}; delete it after them", named(.0))]
    InUse(Vec<Problem>),
}

fn named(problems: &[Problem]) -> String {
    let mut texts: Vec<_> = problems.iter().take(MAX_NAMED).map(Problem::to_string).collect();
    if let Some(more) = problems.len().checked_sub(MAX_NAMED).filter(|more| *more > 0) {
        texts.push(format!("and {more} more"));
    }
    texts.join("; ")
}

/// What an API server wants to know.
#[derive(Clone, Debug)]
pub struct Question {
    uid: String,
    asks: Asks,
}

#[derive(Clone, Debug)]
enum Asks {
    /// Nothing that translation could say anything about.
    Nothing,
    Change {
        proposal: Proposal,
        /// Whether nothing that counts is different from what stands.
        is_unchanged: bool,
    },
}

impl Question {
    /// Reads the body of a request. Our own objects are read in `namespace` only.
    ///
    /// # Errors
    /// When the body is not an AdmissionReview of version v1 that could be answered.
    pub fn read(body: &[u8], namespace: &str) -> Result<Self, NotAReview> {
        let mut review: Value = serde_json::from_slice(body).map_err(|error| NotAReview::Syntax(error.to_string()))?;
        let text = |value: &Value, pointer: &str| value.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
        if text(&review, "/apiVersion").as_deref() != Some("admission.k8s.io/v1") {
            return Err(NotAReview::Shape("apiVersion is another one"));
        }
        if text(&review, "/kind").as_deref() != Some("AdmissionReview") {
            return Err(NotAReview::Shape("kind is another one"));
        }
        let mut request = review.get_mut("request").map(Value::take).ok_or(NotAReview::Shape("request is missing"))?;
        // The answer must name it.
        let uid = text(&request, "/uid").filter(|uid| !uid.is_empty());
        let uid = uid.ok_or(NotAReview::Shape("request.uid is missing"))?;
        let operation = text(&request, "/operation").ok_or(NotAReview::Shape("request.operation is missing"))?;
        let kind = kind(&request);
        let is_part = text(&request, "/subResource").is_some_and(|part| !part.is_empty());
        let Some(kind) = kind.filter(|_| !is_part) else { return Ok(Self { uid, asks: Asks::Nothing }) };
        let take = |request: &mut Value, field: &str| request.get_mut(field).map(Value::take).unwrap_or_default();
        let asks = match operation.as_str() {
            "DELETE" => {
                let name = text(&request, "/name").unwrap_or_default();
                let namespace = text(&request, "/namespace").unwrap_or_default();
                let id = Id::keyed(kind, ObjectKey::new(namespace, name));
                Asks::Change { proposal: Proposal::Remove(id), is_unchanged: false }
            }
            "CREATE" | "UPDATE" => {
                let (object, old) = (take(&mut request, "object"), take(&mut request, "oldObject"));
                if !object.is_object() {
                    return Err(NotAReview::Shape("request.object is missing"));
                }
                let is_here = text(&request, "/namespace").as_deref() == Some(namespace);
                let is_going = object.pointer("/metadata/deletionTimestamp").is_some();
                let is_new = operation == "CREATE";
                // Whoever holds back an object that is going must be able to let go of it. One that stands where
                // nobody reads it does no harm; a new one there would wait for ever.
                if is_going || !(is_here || is_new) {
                    Asks::Nothing
                } else {
                    let same = |pointer: &str| object.pointer(pointer) == old.pointer(pointer);
                    let is_unchanged = !is_new && same("/spec") && same("/metadata/labels");
                    Asks::Change { proposal: Proposal::Set(object), is_unchanged }
                }
            }
            _ => Asks::Nothing,
        };
        Ok(Self { uid, asks })
    }

    /// The change to be judged, if there is one to be judged.
    pub fn proposal(&self) -> Option<&Proposal> {
        match &self.asks {
            Asks::Change { proposal, .. } => Some(proposal),
            Asks::Nothing => None,
        }
    }

    /// The verdict, with what translation says of the [`proposal`](Self::proposal), if there is one.
    pub fn verdict(self, review: Review) -> Verdict {
        let Self { uid, asks } = self;
        let (refusal, warnings) = match asks {
            Asks::Nothing => (None, Vec::new()),
            Asks::Change { proposal, is_unchanged } => judge(&proposal, is_unchanged, review),
        };
        Verdict { uid, refusal, warnings }
    }
}

/// Which of our kinds a request is about.
fn kind(request: &Value) -> Option<Kind> {
    let text = |pointer: &str| request.pointer(pointer).and_then(Value::as_str);
    let (group, version) = (text("/kind/group")?, text("/kind/version")?);
    if OUR_API.split_once('/') != Some((group, version)) {
        return None;
    }
    let name = text("/kind/kind")?;
    Kind::ALL.into_iter().find(|kind| kind.api_version() == OUR_API && kind.name() == name)
}

fn judge(proposal: &Proposal, is_unchanged: bool, review: Review) -> (Option<Refusal>, Vec<String>) {
    let Review { losses, warnings } = review;
    // What was wrong before the webhook looked must not keep anybody from changing an annotation.
    let (excused, losses): (Vec<_>, Vec<_>) = losses.into_iter().partition(|loss| is_unchanged && loss.is_old);
    let excused = excused.into_iter().map(|loss| format!("left out: {}", loss.problem));
    let mut texts: Vec<String> = excused.chain(warnings.iter().map(Problem::to_string)).collect();
    let problems: Vec<Problem> = losses.into_iter().map(|loss| loss.problem).collect();
    let refusal = match proposal {
        _ if problems.is_empty() => None,
        Proposal::Set(_) => Some(Refusal::LeftOut(problems)),
        Proposal::Remove(Id { kind: Kind::BfdProfile, .. }) => Some(Refusal::InUse(problems)),
        // To take something away is always allowed; what it does to others is said.
        Proposal::Remove(_) => {
            texts.extend(problems.iter().map(Problem::to_string));
            None
        }
    };
    (refusal, texts)
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    uid: String,
    /// Why the change is refused, if it is.
    pub refusal: Option<Refusal>,
    /// What whoever makes the change is told beside that.
    pub warnings: Vec<String>,
}

impl Verdict {
    /// The AdmissionReview that says so.
    pub fn body(&self) -> Value {
        let mut response = json!({ "uid": self.uid, "allowed": self.refusal.is_none() });
        if let Some(refusal) = &self.refusal {
            response["status"] = json!({
                "status": "Failure",
                "code": 422,
                "reason": "Invalid",
                "message": refusal.to_string(),
            });
        }
        if !self.warnings.is_empty() {
            let short = |text: &String| text.get(..text.floor_char_boundary(MAX_WARNING)).unwrap_or(text).to_owned();
            response["warnings"] = self.warnings.iter().take(MAX_WARNINGS).map(short).collect();
        }
        json!({ "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response })
    }
}

/// A change to be judged, and where the judgement goes.
#[derive(Debug)]
pub(crate) struct Inquiry {
    pub proposal: Proposal,
    pub reply: oneshot::Sender<Review>,
}

/// Answers questions by the objects that this process follows. Clones answer by the same.
#[derive(Clone, Debug)]
pub struct Admission {
    namespace: String,
    inquiries: mpsc::Sender<Inquiry>,
}

/// Why a question has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AnswerError {
    /// It is no question.
    #[error(transparent)]
    NotAReview(#[from] NotAReview),
    /// Nobody follows the objects any more.
    #[error("this process is stopping")]
    Stopping,
}

impl Admission {
    /// One that answers for objects in `namespace`, and where its questions come out.
    pub(crate) fn new(namespace: String) -> (Self, mpsc::Receiver<Inquiry>) {
        let (inquiries, asked) = mpsc::channel(QUESTIONS);
        (Self { namespace, inquiries }, asked)
    }

    /// One without anybody who knows the configuration: it answers what needs no such knowledge.
    pub fn unattended(namespace: &str) -> Self {
        Self::new(namespace.to_owned()).0
    }

    /// The answer to the body of a request.
    ///
    /// # Errors
    /// When the body is no question, and when the process is about to stop.
    pub async fn answer(&self, body: &[u8]) -> Result<Verdict, AnswerError> {
        let question = Question::read(body, &self.namespace)?;
        let review = match question.proposal() {
            None => Review::default(),
            Some(proposal) => {
                let (reply, answer) = oneshot::channel();
                let inquiry = Inquiry { proposal: proposal.clone(), reply };
                self.inquiries.send(inquiry).await.map_err(|_| AnswerError::Stopping)?;
                answer.await.map_err(|_| AnswerError::Stopping)?
            }
        };
        Ok(question.verdict(review))
    }
}

#[cfg(test)]
mod tests;
