package judge

import (
	"slices"

	"github.com/cantuslog/cantus/subjects"
)

// Version is the version of the format.
const Version = 1

// WholeLog is a MessageIDWindow.
const WholeLog = -1

// History is what clients did to a cluster, and what its replicas hold at the
// end.
type History struct {
	Header     Header
	Operations []*Operation
	Drains     []*Drain
}

// Header is the first line of a history.
type Header struct {
	Version    int `json:"version"`
	Partitions int `json:"partitions"`
	// Replicas is how many replicas each partition has. 0 is unknown.
	Replicas int `json:"replicas,omitempty"`
	// AllWriters reports that the history has every append that was ever sent
	// to the cluster.
	AllWriters bool `json:"all_writers,omitempty"`
	// MessageIDWindow is how long message ids are remembered. 0 is 2 minutes.
	// WholeLog is as long as their transactions are kept, whatever MessageIDs
	// is.
	MessageIDWindow int64 `json:"message_id_window,omitempty"`
	// MessageIDs is how many are remembered at most. 0 is 1,000,000.
	MessageIDs int `json:"message_ids,omitempty"`
	// Locks is the capacity of a partition's lock table. 0 is 1,000,000.
	Locks int `json:"locks,omitempty"`
	// ClockSkew is by how much the nodes' clocks differ at most.
	ClockSkew int64 `json:"clock_skew,omitempty"`
}

// Operation is one request of a client. Exactly one of the fields from Append
// to Trim is set.
type Operation struct {
	Client    string `json:"client"`
	Partition int    `json:"partition"`
	// Start is when the request was sent. End is when the answer came, or when
	// the client gave up.
	Start int64 `json:"start"`
	End   int64 `json:"end"`

	Append *Transaction  `json:"append,omitempty"`
	Batch  []Transaction `json:"batch,omitempty"`
	// Atomic says that Batch is an atomic batch. What is given for it as a
	// whole is in its first transaction, and the high-water mark in each.
	Atomic bool    `json:"atomic,omitempty"`
	Read   *Read   `json:"read,omitempty"`
	Get    *Get    `json:"get,omitempty"`
	Info   *Info   `json:"info,omitempty"`
	Cursor *Cursor `json:"cursor,omitempty"`
	Trim   *Trim   `json:"trim,omitempty"`

	Result
	// Results has the outcome of each transaction of a batch that was not
	// refused as a whole.
	Results []Result `json:"results,omitempty"`
}

// Outcome is what a client knows of an operation afterwards.
type Outcome string

// The outcomes.
const (
	OK      Outcome = "ok"
	Refused Outcome = "refused" // Error says why
	Unknown Outcome = "unknown" // no answer came
)

// Result is the answer to an operation.
type Result struct {
	Outcome Outcome `json:"outcome,omitempty"`
	// Txid and Time are those of the transaction that was appended, or of the
	// cursor after the operation.
	Txid      uint64 `json:"txid,omitempty"`
	Time      int64  `json:"time,omitempty"`
	Duplicate bool   `json:"duplicate,omitempty"`
	// Error is the refusal as the node sent it. Its code and its message may
	// be left out.
	Error         *subjects.Error `json:"error,omitempty"`
	HighWaterMark *uint64         `json:"high_water_mark,omitempty"`
	// Owner is that of the cursor after the operation, "" if it has none.
	Owner string `json:"owner,omitempty"`
}

// open reports whether the operation may have been carried out without the
// client's knowledge.
func (r *Result) open() bool {
	return r.Outcome == Unknown || r.Outcome == Refused && (r.Error.Reason == subjects.Unknown || r.Error.Reason == subjects.Internal)
}

// Transaction is a transaction as a client sends it.
type Transaction struct {
	// ID is the message id. If it is empty and there is a session, it is the
	// number in that.
	ID string `json:"id,omitempty"`
	// Session and SessionSeq are the session and the number in it.
	Session    string `json:"session,omitempty"`
	SessionSeq uint64 `json:"session_seq,omitempty"`
	// Move is the cursor that moves with the transaction, nil for none. An
	// atomic batch has it in its first transaction.
	Move *Move `json:"move,omitempty"`
	// Content stands for the payload: a hash of it, say. It is compared and
	// nothing else. If it is empty, it is not known.
	Content string `json:"content,omitempty"`
	// Headers stands for the application's headers in the same way.
	Headers       string   `json:"headers,omitempty"`
	Kind          string   `json:"kind,omitempty"`
	HighWaterMark *uint64  `json:"high_water_mark,omitempty"`
	ExpectedLast  *uint64  `json:"expected_last,omitempty"`
	Write         []string `json:"write,omitempty"`
	Read          []string `json:"read,omitempty"`
	Append        []string `json:"append,omitempty"`
	// NotAfter is the last time with which it may commit, 0 for none. It is not
	// stored.
	NotAfter int64 `json:"not_after,omitempty"`
	// Unless is the condition, which is not stored.
	Unless []Item `json:"unless,omitempty"`
}

// Item is an item of a condition.
type Item = subjects.QueryItem

// kind returns the kind, which is subjects.DefaultKind if none was sent.
func (t *Transaction) kind() string {
	if t.Kind == "" {
		return subjects.DefaultKind
	}
	return t.Kind
}

// mark returns the writer's high-water mark, 0 if it gave none.
func (t *Transaction) mark() uint64 {
	if t.HighWaterMark == nil {
		return 0
	}
	return *t.HighWaterMark
}

// recorded calls yield with each lock that the transaction records.
func (t *Transaction) recorded(yield func(string) bool) {
	for _, l := range t.Write {
		if !yield(l) {
			return
		}
	}
	for _, l := range t.Append {
		if !yield(l) {
			return
		}
	}
}

// checked calls yield with the mode and name of each lock that is checked.
func (t *Transaction) checked(yield func(mode, name string) bool) {
	for _, l := range t.Write {
		if !yield("write", l) {
			return
		}
	}
	for _, l := range t.Read {
		if !yield("read", l) {
			return
		}
	}
}

// records reports whether the transaction recorded a lock that overlaps name.
func (t *Transaction) records(name string) bool {
	for l := range t.recorded {
		if subjects.Overlap(l, name) {
			return true
		}
	}
	return false
}

// otherContent is what difference returns if only the contents differ.
const otherContent = "another payload"

// difference returns what o has of its own, such as "another kind". It returns
// "" if the transactions are the same, as they are stored.
func (t *Transaction) difference(o *Transaction) string {
	switch {
	case t.ID != o.ID:
		return "another message id"
	case t.Session != o.Session || t.SessionSeq != o.SessionSeq:
		return "another session, or number in it"
	case (t.Move == nil) != (o.Move == nil) || t.Move != nil && *t.Move != *o.Move:
		return "another cursor, or position of it"
	case t.Content != o.Content && t.Content != "" && o.Content != "":
		return otherContent
	case t.Headers != o.Headers && t.Headers != "" && o.Headers != "":
		return "other headers"
	case t.kind() != o.kind():
		return "another kind"
	case (t.HighWaterMark == nil) != (o.HighWaterMark == nil) || t.mark() != o.mark():
		return "another high-water mark"
	case !slices.Equal(t.Write, o.Write) || !slices.Equal(t.Read, o.Read) || !slices.Equal(t.Append, o.Append):
		return "other locks"
	}
	return ""
}

// Stored is a committed transaction, as it was read back.
type Stored struct {
	Txid uint64 `json:"txid"`
	Time int64  `json:"time"`
	// Atomic is the transaction's atomic batch, nil if it is in none.
	Atomic *Atomic `json:"atomic,omitempty"`
	Transaction
}

// difference is that of the transactions, and of their times.
func (s *Stored) difference(o *Stored) string {
	if s == o {
		return ""
	}
	if s.Time != o.Time {
		return "another time"
	}
	if s.atomic() != o.atomic() {
		return "another atomic batch"
	}
	return s.Transaction.difference(&o.Transaction)
}

// Read is a read, with its answer if there was one.
type Read struct {
	Replica      bool      `json:"replica,omitempty"` // of any replica, not the leader
	From         uint64    `json:"from"`
	Kinds        []string  `json:"kinds,omitempty"`
	Lock         string    `json:"lock,omitempty"`
	Transactions []*Stored `json:"transactions,omitempty"`
	Next         uint64    `json:"next,omitempty"`
}

func (r *Read) filtered() bool { return len(r.Kinds) > 0 || r.Lock != "" }

// matches reports whether a read asks for a transaction.
func (r *Read) matches(t *Stored) bool {
	return (len(r.Kinds) == 0 || slices.Contains(r.Kinds, t.kind())) && (r.Lock == "" || t.records(r.Lock))
}

// Get is a look-up by txid or by lock, with its answer if there was one.
type Get struct {
	Txid        uint64  `json:"txid,omitempty"`
	Lock        string  `json:"lock,omitempty"`
	Transaction *Stored `json:"transaction,omitempty"`
}

// Info is a partition's description. Without an answer it is empty.
type Info struct {
	FirstTxid uint64 `json:"first_txid,omitempty"`
	Digest    string `json:"digest,omitempty"`
	Leader    string `json:"leader,omitempty"`
	Term      uint64 `json:"term,omitempty"`
	Floor     uint64 `json:"floor,omitempty"`
}

// Cursor reads a cursor, or sets it if Set is not nil.
type Cursor struct {
	Name          string  `json:"name"`
	Set           *uint64 `json:"set,omitempty"`
	Expected      *uint64 `json:"expected,omitempty"`
	Owner         *string `json:"owner,omitempty"`
	ExpectedOwner *string `json:"expected_owner,omitempty"`
}

// Trim deletes the oldest transactions.
type Trim struct {
	// Before is the oldest transaction to keep. 0 says that the request had an
	// age or a size.
	Before    uint64 `json:"before,omitempty"`
	FirstTxid uint64 `json:"first_txid,omitempty"` // of the answer
}

// Drain is the log of one replica of a partition, read when nothing was
// appended any more.
type Drain struct {
	Replica       string `json:"replica"`
	Partition     int    `json:"partition"`
	FirstTxid     uint64 `json:"first_txid"` // the oldest transaction kept
	HighWaterMark uint64 `json:"high_water_mark"`
	Digest        string `json:"digest,omitempty"` // at the high-water mark, if known
	// As names a replica of the same partition, drained before, that has the
	// very same transactions. They are not repeated in a file.
	As           string    `json:"as,omitempty"`
	Transactions []*Stored `json:"-"`
}

// at returns the transaction with a txid, nil if there is none. The
// transactions are in ascending order.
func at(sorted []*Stored, txid uint64) *Stored {
	if len(sorted) == 0 || txid < sorted[0].Txid {
		return nil
	}
	if i := txid - sorted[0].Txid; i < uint64(len(sorted)) && sorted[i].Txid == txid {
		return sorted[i] // there is no gap
	}
	i, found := slices.BinarySearchFunc(sorted, txid, func(s *Stored, txid uint64) int {
		switch {
		case s.Txid < txid:
			return -1
		case s.Txid > txid:
			return 1
		}
		return 0
	})
	if !found {
		return nil
	}
	return sorted[i]
}
