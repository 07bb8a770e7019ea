package judge

import (
	"cmp"
	"fmt"
	"slices"
)

// Class is a kind of error in a history.
type Class string

// The classes of findings. classes says what each means.
const (
	LostPrefix         Class = "lost-prefix"
	LostMiddle         Class = "lost-middle"
	LostTail           Class = "lost-tail"
	AcknowledgedOther  Class = "acknowledged-other"
	AcknowledgedID     Class = "acknowledged-id"
	AcknowledgedTwice  Class = "acknowledged-twice"
	AcknowledgedTime   Class = "acknowledged-time"
	DuplicateUnsaid    Class = "duplicate-unsaid"
	AppendedTwice      Class = "appended-twice"
	RefusedCommitted   Class = "refused-committed"
	Invented           Class = "invented"
	Reordered          Class = "reordered"
	BatchOrder         Class = "batch-order"
	ExpectedLastMissed Class = "expected-last-missed"
	ExpiredMissed      Class = "expired-missed"
	AtomicTorn         Class = "atomic-torn"
	AtomicSeen         Class = "atomic-seen"
	SessionOrder       Class = "session-order"
	SessionFalse       Class = "session-false"

	DrainMissing   Class = "drain-missing"
	ReplicaBehind  Class = "replica-behind"
	ReplicaDiffers Class = "replica-differs"
	DigestDiffers  Class = "digest-differs"
	TxidGap        Class = "txid-gap"
	TxidOrder      Class = "txid-order"
	MarkWrong      Class = "mark-wrong"
	TimeOrder      Class = "time-order"
	TrimBeyond     Class = "trim-beyond"
	TrimMissing    Class = "trim-missing"

	ConflictMissed      Class = "conflict-missed"
	AheadMissed         Class = "ahead-missed"
	ConflictFalse       Class = "conflict-false"
	ConflictUncommitted Class = "conflict-uncommitted"
	ConflictIncomplete  Class = "conflict-incomplete"
	ConditionMissed     Class = "condition-missed"
	ConditionFalse      Class = "condition-false"
	FloorHigh           Class = "floor-high"
	AheadFalse          Class = "ahead-false"
	WrongLastFalse      Class = "wrong-last-false"
	IDReusedFalse       Class = "id-reused-false"
	IDIgnored           Class = "id-ignored"
	TrimmedFalse        Class = "trimmed-false"
	NotFoundFalse       Class = "not-found-false"
	ReasonUnexpected    Class = "reason-unexpected"

	ReadGap        Class = "read-gap"
	ReadDiffers    Class = "read-differs"
	ReadBeyond     Class = "read-beyond"
	ReadIncomplete Class = "read-incomplete"
	ReadUnmatched  Class = "read-unmatched"
	ReadOrder      Class = "read-order"
	GetUnmatched   Class = "get-unmatched"

	InfoStale  Class = "info-stale"
	MarkBeyond Class = "mark-beyond"
	TermBack   Class = "term-back"
	TwoLeaders Class = "two-leaders"

	CursorStale    Class = "cursor-stale"
	CursorLost     Class = "cursor-lost"
	CursorOther    Class = "cursor-other"
	CursorInvented Class = "cursor-invented"
	CursorRefused  Class = "cursor-refused"
	MoveMissed     Class = "move-missed"
	OwnerMissed    Class = "owner-missed"
	OwnerFalse     Class = "owner-false"
)

// classes explains each class.
var classes = []struct {
	class   Class
	meaning string
}{
	{LostPrefix, "an acknowledged transaction is missing at the beginning of a replica's log, and no trim asked for that"},
	{LostMiddle, "an acknowledged transaction is missing within a replica's log"},
	{LostTail, "an acknowledged transaction is missing at the end of a replica's log"},
	{AcknowledgedOther, "the txid of an acknowledgement has another payload, kind, high-water mark or cursor, other headers or other locks than was sent"},
	{AcknowledgedID, "the txid of an acknowledgement has another message id than was sent"},
	{AcknowledgedTwice, "two transactions were acknowledged with the same txid"},
	{AcknowledgedTime, "an acknowledgement has another time than the transaction"},
	{DuplicateUnsaid, "two answers acknowledge a message id, and neither says that it is a duplicate"},
	{AppendedTwice, "a message id has two transactions within the time that it is remembered"},
	{RefusedCommitted, "a transaction is in the log although each of its requests was refused"},
	{Invented, "a transaction is in the log that nobody sent, or more often than it was sent"},
	{Reordered, "a transaction was acknowledged before another was sent, and has the higher txid"},
	{BatchOrder, "the transactions of a batch have txids in another order than in the message"},
	{ExpectedLastMissed, "a transaction was appended behind another one than it expected"},
	{ExpiredMissed, "a transaction is committed after the time by which it was to commit"},
	{AtomicTorn, "a part of an atomic batch is in the log, or it is not in one piece, or an answer says so"},
	{AtomicSeen, "a high-water mark is within an atomic batch"},
	{SessionOrder, "the numbers of a session have a gap in the log, or are in another order, or one is there twice"},
	{SessionFalse, "a number of a session was refused although it was the next one, or the answer names another number than the last"},

	{DrainMissing, "a partition has fewer or more drains than replicas"},
	{ReplicaBehind, "a replica lacks transactions at the end that another one has, none of them acknowledged"},
	{ReplicaDiffers, "a replica has another transaction at a txid than most others"},
	{DigestDiffers, "two digests at the same high-water mark differ"},
	{TxidGap, "a replica lacks transactions within its log, none of them acknowledged"},
	{TxidOrder, "a drain has its transactions in another order, or one twice"},
	{MarkWrong, "a replica's high-water mark is not its last transaction, or its first txid not its first transaction"},
	{TimeOrder, "a transaction's time is not later than that of the one before"},
	{TrimBeyond, "more was trimmed than was asked for, or something without a trim"},
	{TrimMissing, "a replica keeps what a trim said it has removed"},

	{ConflictMissed, "a transaction is committed although one of its locks was recorded after its high-water mark"},
	{AheadMissed, "a transaction is committed although its high-water mark, or the position of the cursor that it moves, is not below its txid"},
	{ConflictFalse, "a conflict names a transaction or a lock that does not justify it"},
	{ConflictUncommitted, "a conflict names a transaction that was never committed"},
	{ConflictIncomplete, "a conflict leaves out a violated lock, or names a transaction that is not the newest with it"},
	{ConditionMissed, "a transaction was acknowledged although its condition matches one after its high-water mark"},
	{ConditionFalse, "a conflict names a transaction that the condition does not match, or one that it could have looked at"},
	{FloorHigh, "a floor is higher than what can have been forgotten"},
	{AheadFalse, "something was refused as ahead although the log had reached it before the request"},
	{WrongLastFalse, "an expected last sequence was refused although the log ended there all the time"},
	{IDReusedFalse, "a message id was refused as reused by a transaction without that id, or with the same content"},
	{IDIgnored, "a message id that was acknowledged and still counts did not decide the answer"},
	{TrimmedFalse, "something was refused as trimmed that was not"},
	{NotFoundFalse, "a lock was not found although a transaction had recorded it, and nothing was forgotten"},
	{ReasonUnexpected, "a request was refused for a reason that it can't have"},

	{ReadGap, "a read without filters leaves out a transaction"},
	{ReadDiffers, "a read or a get returned another transaction than the log has"},
	{ReadBeyond, "a read or a get returned a transaction that is not in the log, or goes on past the log's end"},
	{ReadIncomplete, "a filtered read leaves out a transaction that passes the filters"},
	{ReadUnmatched, "a filtered read returned a transaction that does not pass the filters"},
	{ReadOrder, "a read returned transactions out of order, or outside of what it asked for"},
	{GetUnmatched, "a get returned another txid than it asked for, or one that did not record the lock"},

	{InfoStale, "a partition's description is older than what was known before the request"},
	{MarkBeyond, "an answer has a high-water mark that the log never reached, or had not reached yet"},
	{TermBack, "a partition's term went back"},
	{TwoLeaders, "two nodes led a partition in the same term"},

	{CursorStale, "a cursor's answer is older than one that came before the request"},
	{CursorLost, "a cursor was set from another position than the expected one, or from another owner"},
	{CursorOther, "a cursor had two positions, or owners, at the same time stamp"},
	{CursorInvented, "a cursor has a position, or an owner, that nobody set"},
	{CursorRefused, "a cursor was refused as being elsewhere, or another owner's, although it was as expected"},
	{MoveMissed, "a cursor has not moved with a committed transaction"},
	{OwnerMissed, "a transaction is committed although the cursor that it moves was not its session's"},
	{OwnerFalse, "a transaction was refused because of its cursor, which was its session's all the time"},
}

// Meaning returns what a class means, in a sentence without its end.
func (c Class) Meaning() string {
	for _, k := range classes {
		if k.class == c {
			return k.meaning
		}
	}
	return ""
}

// Classes returns all classes.
func Classes() (all []Class) {
	for _, k := range classes {
		all = append(all, k.class)
	}
	return all
}

// Finding is one error in a history.
type Finding struct {
	Class     Class  `json:"class"`
	Partition int    `json:"partition"`
	Text      string `json:"text"`
}

// Report is what the judge found.
type Report struct {
	// Findings are in the order of Classes. Of each class and partition, at
	// most MaxFindings are kept.
	Findings []Finding `json:"findings"`
	// Count is how often each class was found.
	Count map[Class]int `json:"count"`
	// Operations, Transactions and Drains are what was checked: requests,
	// committed transactions, and logs of replicas.
	Operations   int `json:"operations"`
	Transactions int `json:"transactions"`
	Drains       int `json:"drains"`
}

// MaxFindings is how many findings of a class are kept for a partition.
const MaxFindings = 10

// add adds a finding to the report of one partition.
func (r *Report) add(c Class, partition int, format string, args ...any) {
	if r.Count == nil {
		r.Count = map[Class]int{}
	}
	if r.Count[c]++; r.Count[c] <= MaxFindings {
		r.Findings = append(r.Findings, Finding{c, partition, fmt.Sprintf(format, args...)})
	}
}

// merge adds the findings of another report.
func (r *Report) merge(o *Report) {
	r.Findings = append(r.Findings, o.Findings...)
	for c, n := range o.Count {
		r.Count[c] += n
	}
	r.Operations += o.Operations
	r.Transactions += o.Transactions
	r.Drains += o.Drains
}

// sort puts the findings into the order of the classes.
func (r *Report) sort() {
	rank := map[Class]int{}
	for i, k := range classes {
		rank[k.class] = i
	}
	slices.SortStableFunc(r.Findings, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(rank[a.Class], rank[b.Class]), cmp.Compare(a.Partition, b.Partition))
	})
}
