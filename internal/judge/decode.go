package judge

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/cantuslog/cantus/subjects"
)

// ErrFormat is returned, wrapped, by Decode for what is not a history.
var ErrFormat = errors.New("not a history")

// line is a line of the file. Exactly one of its fields is set.
type line struct {
	History     *Header    `json:"history,omitempty"`
	Operation   *Operation `json:"operation,omitempty"`
	Drain       *Drain     `json:"drain,omitempty"`
	Transaction *Stored    `json:"transaction,omitempty"`
}

// chunkBytes is about how much of the input is decoded at a time.
const chunkBytes = 1 << 20

// Decode reads a history. It returns an error that wraps ErrFormat if the input
// is not one.
func Decode(r io.Reader) (*History, error) {
	var (
		group  errgroup.Group
		chunks []*chunk
		in     = bufio.NewReaderSize(r, 64<<10)
		number = 1
	)
	group.SetLimit(runtime.GOMAXPROCS(0))
	for {
		text, err := readLines(in)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("read a history: %w", err), group.Wait())
		}
		if len(text) == 0 {
			break
		}
		c := &chunk{text: text, number: number}
		number += bytes.Count(text, []byte{'\n'})
		chunks = append(chunks, c)
		group.Go(c.decode)
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	return assemble(chunks)
}

// readLines returns about chunkBytes of whole lines, and nothing at the end.
func readLines(in *bufio.Reader) ([]byte, error) {
	text := make([]byte, chunkBytes)
	n, err := io.ReadFull(in, text)
	text = text[:n]
	switch {
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		return text, nil
	case err != nil:
		return nil, err
	}
	rest, err := in.ReadBytes('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return append(text, rest...), nil
}

// chunk is a number of lines, which are decoded beside those of other chunks.
type chunk struct {
	text   []byte
	number int // of the first line
	lines  []line
}

func (c *chunk) decode() error {
	d := json.NewDecoder(bytes.NewReader(c.text))
	d.DisallowUnknownFields() // a typo would leave something out of the checks
	for {
		var l line
		begin := d.InputOffset()
		switch err := d.Decode(&l); {
		case errors.Is(err, io.EOF):
			c.text = nil
			return nil
		case err != nil:
			return fmt.Errorf("%w: line %d: %w", ErrFormat, c.number+c.linesTo(begin), err)
		}
		if err := l.check(); err != nil {
			return fmt.Errorf("%w: line %d: %w", ErrFormat, c.number+c.linesTo(begin), err)
		}
		c.lines = append(c.lines, l)
	}
}

// linesTo returns how many lines end before the value after an offset.
func (c *chunk) linesTo(offset int64) int {
	rest := bytes.TrimLeft(c.text[offset:], " \t\r\n")
	return bytes.Count(c.text[:len(c.text)-len(rest)], []byte{'\n'})
}

func (l *line) check() error {
	n := 0
	for _, is := range []bool{l.History != nil, l.Operation != nil, l.Drain != nil, l.Transaction != nil} {
		if is {
			n++
		}
	}
	switch {
	case n != 1:
		return errors.New("it has not exactly one of history, operation, drain and transaction")
	case l.Transaction != nil && l.Transaction.Txid == 0:
		return errors.New("a stored transaction has the txid 0")
	case l.Operation != nil:
		l.Operation.identify()
		return l.Operation.check()
	case l.Transaction != nil:
		l.Transaction.Identify()
	}
	return nil
}

// check returns an error if the operation's parts do not fit together.
func (o *Operation) check() error {
	n := 0
	for _, is := range []bool{o.Append != nil, o.Batch != nil, o.Read != nil, o.Get != nil, o.Info != nil, o.Cursor != nil, o.Trim != nil} {
		if is {
			n++
		}
	}
	if n != 1 {
		return errors.New("an operation is not exactly one of append, batch, read, get, info, cursor and trim")
	}
	if o.Atomic && len(o.Batch) == 0 {
		return errors.New("an atomic batch without transactions")
	}
	if o.End < o.Start {
		return errors.New("an operation ends before it starts")
	}
	if err := o.Result.check(); err != nil {
		return err
	}
	if o.Results == nil {
		return o.checkAnswer()
	}
	if o.Outcome != OK || len(o.Results) != len(o.Batch) {
		return fmt.Errorf("%d results of %d transactions, outcome %q", len(o.Results), len(o.Batch), o.Outcome)
	}
	for i := range o.Results {
		if err := o.Results[i].check(); err != nil {
			return fmt.Errorf("result %d: %w", i, err)
		}
	}
	return nil
}

// checkAnswer checks what an operation with the outcome OK must have.
func (o *Operation) checkAnswer() error {
	if o.Outcome != OK {
		return nil
	}
	switch {
	case o.Batch != nil:
		return errors.New("a batch without results")
	case o.Append != nil && o.Txid == 0:
		return errors.New("an append without a txid")
	case o.Get != nil && o.Get.Transaction == nil:
		return errors.New("a get without a transaction")
	case (o.Info != nil || o.Cursor != nil) && o.HighWaterMark == nil:
		return errors.New("an answer without a high-water mark")
	case o.Trim != nil && o.Trim.FirstTxid == 0, o.Info != nil && o.Info.FirstTxid == 0:
		return errors.New("an answer without the first txid")
	case o.Read != nil && o.Read.Next == 0:
		return errors.New("a read without its next txid")
	}
	return nil
}

func (r *Result) check() error {
	switch r.Outcome {
	case OK, Unknown:
		if r.Error != nil {
			return fmt.Errorf("outcome %q with an error", r.Outcome)
		}
	case Refused:
		if r.Error == nil {
			return errors.New("refused without an error")
		}
		if _, known := subjects.Reasons()[r.Error.Reason]; !known {
			return fmt.Errorf("reason %q is not known", r.Error.Reason)
		}
	default:
		return fmt.Errorf("outcome %q is not known", r.Outcome)
	}
	return nil
}

// assembler makes a history of its lines.
type assembler struct {
	History
	begun bool
	first map[int]*Drain // of each partition
	drain *Drain         // whose transactions follow, nil if none may
}

func assemble(chunks []*chunk) (*History, error) {
	a := &assembler{first: map[int]*Drain{}}
	for _, c := range chunks {
		for _, l := range c.lines {
			if err := a.add(l); err != nil {
				return nil, fmt.Errorf("%w: %w", ErrFormat, err)
			}
		}
		c.lines = nil
	}
	if !a.begun {
		return nil, fmt.Errorf("%w: it is empty", ErrFormat)
	}
	return &a.History, a.check()
}

func (a *assembler) add(l line) error {
	if a.begun != (l.History == nil) {
		return errors.New("the first line, and no other, has a history")
	}
	switch {
	case l.History != nil:
		a.Header, a.begun = *l.History, true
		if a.Header.Version != Version {
			return fmt.Errorf("version %d, and not %d", a.Header.Version, Version)
		}
	case l.Operation != nil:
		a.Operations = append(a.Operations, l.Operation)
	case l.Drain != nil:
		return a.addDrain(l.Drain)
	case a.drain == nil:
		return errors.New("a stored transaction before any drain, or behind one that has those of another")
	default:
		t := l.Transaction
		// Replicas that hold the same share it.
		if same := at(a.first[a.drain.Partition].Transactions, t.Txid); same != nil && same.equal(t) {
			t = same
		}
		a.drain.Transactions = append(a.drain.Transactions, t)
	}
	return nil
}

func (a *assembler) addDrain(d *Drain) error {
	a.drain = d
	if d.As != "" {
		i := slices.IndexFunc(a.Drains, func(o *Drain) bool { return o.Replica == d.As && o.Partition == d.Partition })
		if i < 0 {
			return fmt.Errorf("replica %s has the transactions of %s, which was not drained before", d.Replica, d.As)
		}
		d.Transactions, d.As, a.drain = a.Drains[i].Transactions, "", nil
	}
	a.Drains = append(a.Drains, d)
	if a.first[d.Partition] == nil {
		a.first[d.Partition] = d
	}
	return nil
}

// equal reports whether two stored transactions are the same in every respect.
func (s *Stored) equal(o *Stored) bool {
	return s.Content == o.Content && s.Headers == o.Headers && s.difference(o) == ""
}

// check returns an error if partitions are out of range, or a partition with
// operations was not drained.
func (h *History) check() error {
	if h.Header.Partitions < 1 || h.Header.Partitions > subjects.MaxPartitions {
		return fmt.Errorf("%w: %d partitions", ErrFormat, h.Header.Partitions)
	}
	drained := map[int]bool{}
	for _, d := range h.Drains {
		if d.Partition < 0 || d.Partition >= h.Header.Partitions {
			return fmt.Errorf("%w: a drain of partition %d", ErrFormat, d.Partition)
		}
		drained[d.Partition] = true
	}
	for _, o := range h.Operations {
		if o.Partition < 0 || o.Partition >= h.Header.Partitions {
			return fmt.Errorf("%w: an operation on partition %d", ErrFormat, o.Partition)
		}
		if !drained[o.Partition] {
			return fmt.Errorf("%w: no replica of partition %d was drained", ErrFormat, o.Partition)
		}
	}
	return nil
}
