//! Reading and writing JSON objects field by field.

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::ConvertError;

/// Reads fields of an object; what is absent reads as empty.
#[derive(Clone, Copy)]
pub(super) struct Reader<'a>(pub(super) &'a Value);

impl<'a> Reader<'a> {
    /// The member if it is there and not null.
    pub(super) fn get(self, key: &str) -> Option<Reader<'a>> {
        self.0.get(key).filter(|v| !v.is_null()).map(Reader)
    }

    pub(super) fn string(self, key: &str) -> String {
        self.get(key).map(Reader::as_string).unwrap_or_default()
    }

    pub(super) fn strings(self, key: &str) -> Vec<String> {
        self.items(key).map(Reader::as_string).collect()
    }

    pub(super) fn items(self, key: &str) -> impl Iterator<Item = Reader<'a>> + use<'a> {
        let list = self.get(key).and_then(|v| v.0.as_array());
        list.map(Vec::as_slice).unwrap_or_default().iter().map(Reader)
    }

    pub(super) fn entries(self, key: &str) -> impl Iterator<Item = (String, Reader<'a>)> + use<'a> {
        let map = self.get(key).and_then(|v| v.0.as_object());
        map.into_iter().flatten().map(|(k, v)| (k.clone(), Reader(v)))
    }

    pub(super) fn string_map(self, key: &str) -> HashMap<String, String> {
        self.entries(key).map(|(k, v)| (k, v.as_string())).collect()
    }

    pub(super) fn boolean(self, key: &str) -> Option<bool> {
        self.get(key).and_then(|v| v.0.as_bool())
    }

    /// An optional number of any integer type.
    pub(super) fn number<T: TryFrom<i128>>(self, key: &str) -> Result<Option<T>, ConvertError> {
        self.get(key).map(|v| v.as_number(key)).transpose()
    }

    /// A number whose absence means zero.
    pub(super) fn plain<T: TryFrom<i128> + Default>(self, key: &str) -> Result<T, ConvertError> {
        Ok(self.number(key)?.unwrap_or_default())
    }

    pub(super) fn numbers<T: TryFrom<i128>>(self, key: &str) -> Result<Vec<T>, ConvertError> {
        self.items(key).map(|v| v.as_number(key)).collect()
    }

    /// Reads the member object with `read`, if it is there.
    pub(super) fn object<T>(
        self,
        key: &str,
        read: impl FnOnce(Reader<'a>) -> Result<T, ConvertError>,
    ) -> Result<Option<T>, ConvertError> {
        self.get(key).map(read).transpose()
    }

    /// Reads each object of the member list with `read`.
    pub(super) fn objects<T>(
        self,
        key: &str,
        read: impl FnMut(Reader<'a>) -> Result<T, ConvertError>,
    ) -> Result<Vec<T>, ConvertError> {
        self.items(key).map(read).collect()
    }

    fn as_string(self) -> String {
        self.0.as_str().unwrap_or_default().to_owned()
    }

    fn as_number<T: TryFrom<i128>>(self, key: &str) -> Result<T, ConvertError> {
        let wide = match (self.0.as_i64(), self.0.as_u64()) {
            (Some(n), _) => Some(i128::from(n)),
            (None, Some(n)) => Some(i128::from(n)),
            (None, None) => None,
        };
        wide.and_then(|n| T::try_from(n).ok()).ok_or_else(|| ConvertError::Range { field: key.to_owned() })
    }
}

/// Builds an object, leaving out what is empty.
#[derive(Default)]
pub(super) struct Writer(Map<String, Value>);

impl Writer {
    /// A member that is always there.
    pub(super) fn value(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.0.insert(key.to_owned(), value.into());
        self
    }

    pub(super) fn optional(self, key: &str, value: Option<impl Into<Value>>) -> Self {
        match value {
            Some(value) => self.value(key, value),
            None => self,
        }
    }

    pub(super) fn string(self, key: &str, value: &str) -> Self {
        self.optional(key, (!value.is_empty()).then_some(value))
    }

    pub(super) fn list<T: Into<Value> + Clone>(self, key: &str, items: &[T]) -> Self {
        self.optional(key, (!items.is_empty()).then(|| items.to_vec()))
    }

    pub(super) fn objects<T>(self, key: &str, items: &[T], write: impl Fn(&T) -> Value) -> Self {
        let list = (!items.is_empty()).then(|| items.iter().map(write).collect::<Vec<_>>());
        self.optional(key, list)
    }

    pub(super) fn map<T>(self, key: &str, entries: &HashMap<String, T>, write: impl Fn(&T) -> Value) -> Self {
        let map = (!entries.is_empty()).then(|| {
            let map: Map<_, _> = entries.iter().map(|(k, v)| (k.clone(), write(v))).collect();
            map
        });
        self.optional(key, map)
    }

    pub(super) fn string_map(self, key: &str, entries: &HashMap<String, String>) -> Self {
        self.map(key, entries, |v| Value::from(v.as_str()))
    }

    pub(super) fn done(self) -> Value {
        Value::Object(self.0)
    }
}
