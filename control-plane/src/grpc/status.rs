//! Domain errors as gRPC status.

use tonic::metadata::MetadataValue;
use tonic::{Code, Status};

use crate::error::Error;
use crate::rest::problem;
use crate::store::StoreError;

/// The status of an error, with its stable code in the metadata `otonix-code`.
pub fn of(error: &Error) -> Status {
    let code = match error {
        Error::NotFound { .. } => Code::NotFound,
        Error::Conflict { .. } | Error::NewEpochRequired => Code::FailedPrecondition,
        Error::Superseded => Code::Aborted,
        Error::Invalid { .. } | Error::Malformed { .. } => Code::InvalidArgument,
        Error::Unauthenticated { .. } => Code::Unauthenticated,
        Error::Forbidden { .. } => Code::PermissionDenied,
        Error::Busy { .. } => Code::ResourceExhausted,
        Error::PaymentRequired(_) => Code::FailedPrecondition,
        Error::NotConfigured { .. }
        | Error::PaymentPending { .. }
        | Error::Store(StoreError::Unavailable(_) | StoreError::QueueFull | StoreError::LostRace) => {
            Code::Unavailable
        }
        Error::Store(_) | Error::Internal(_) => Code::Internal,
    };
    let mut status = Status::new(code, problem::detail(error));
    status.metadata_mut().insert("otonix-code", MetadataValue::from_static(error.code().as_str()));
    status
}
