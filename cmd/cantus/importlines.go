package main

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/subjects"
)

// The headers that an import adds to a transaction.
const (
	headerOriginalTime  = "Original-Time"
	headerOriginalTxid  = "Original-Txid"
	headerOriginalMsgID = "Original-Msg-Id"
)

// lines reads the lines of an import.
type lines struct {
	in *bufio.Reader
	n  uint64 // lines read
	// chain is a hash over the lines so far: each line's message id has it, so
	// that an import that goes on finds out if the lines before are others.
	chain [sha256.Size]byte
	first []byte // the next line, if it was looked at: the first one at the beginning
	// partition is the one that the lines so far name, and named the number of
	// the first line that names it, 0 for none.
	partition int
	named     uint64
}

// newLines returns the lines of a file. name is the import's.
func newLines(in io.Reader, name string) (*lines, error) {
	l := &lines{in: bufio.NewReaderSize(in, 1<<20)}
	for len(l.first) == 0 {
		var err error
		if l.first, err = l.read(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, err
		}
	}
	l.chain = sha256.Sum256(fmt.Appendf(nil, "cantus import %q", name))
	return l, nil
}

// id identifies the import: by its name and the file's first line.
func (l *lines) id() string {
	seed := sha256.Sum256(append(l.chain[:], l.first...))
	return hex.EncodeToString(seed[:8])
}

// next returns the next line, [io.EOF] after the last one. The caller may keep
// it.
func (l *lines) next() (line []byte, err error) {
	if line = l.first; line != nil {
		l.first = nil
	}
	for len(line) == 0 { // blank lines count for nothing
		if line, err = l.read(); err != nil {
			return nil, err
		}
	}
	l.n++
	h := sha256.New()
	h.Write(l.chain[:])
	h.Write(line)
	h.Sum(l.chain[:0])
	return line, l.checkPartition(line)
}

// checkPartition returns an error if the line names another partition than one
// before. A salvaged file holds all partitions, and they are not to be merged.
func (l *lines) checkPartition(line []byte) error {
	switch p, ok := namedPartition(line); {
	case !ok:
	case l.named == 0:
		l.partition, l.named = p, l.n
	case p != l.partition:
		return usagef("line %d is of partition %d, and line %d of partition %d: import a file for each partition; "+
			"\"cantus salvage DIR --partition %d --to FILE\" and \"cantus export %d FILE\" write one", l.n, p, l.named, l.partition, p, p)
	}
	return nil
}

// namedPartition returns the partition that a line names. Exports and salvaged
// files begin each line with it.
func namedPartition(line []byte) (partition int, ok bool) {
	if rest, ok := bytes.CutPrefix(line, []byte(`{"partition":`)); ok {
		if end := bytes.IndexByte(rest, ','); end > 0 {
			if n, err := strconv.Atoi(string(rest[:end])); err == nil {
				return n, true
			}
		}
	}
	if !bytes.Contains(line, []byte("partition")) && !bytes.Contains(line, []byte(`\u`)) {
		return 0, false
	}
	var named struct {
		Partition *int `json:"partition"`
	}
	if json.Unmarshal(line, &named) != nil || named.Partition == nil {
		return 0, false
	}
	return *named.Partition, true
}

// read returns a line without its end, at most maxLine bytes of it.
func (l *lines) read() (line []byte, err error) {
	for more := true; more; {
		part, err := l.in.ReadSlice('\n')
		if line = append(line, part...); len(line) > maxLine {
			return nil, usagef("line %d has more than %d bytes, and so more than any transaction", l.n+1, maxLine)
		}
		switch more = errors.Is(err, bufio.ErrBufferFull); {
		case more || err == nil:
		case errors.Is(err, io.EOF) && len(bytes.TrimSpace(line)) > 0:
		default:
			return nil, err
		}
	}
	return bytes.TrimSpace(line), nil
}

// tag returns the part of the chain that is in a message id.
func (l *lines) tag() chainTag { return chainTag(l.chain[:]) }

// chainTag is the part of the chain that is in a message id.
type chainTag [6]byte

// skip reads lines up to the n-th, whose tag is known, and returns that one.
func (l *lines) skip(n uint64, tag chainTag) (line []byte, err error) {
	for l.n < n {
		if line, err = l.next(); errors.Is(err, io.EOF) {
			return nil, usagef("the log has %d lines of this import, and the file has only %d: give the file that the import was begun with, or --name for another import", n, l.n)
		} else if err != nil {
			return nil, err
		}
	}
	if n > 0 && l.tag() != tag {
		return nil, usagef("the log has %d lines of this import, and in this file they are others: give the file that the import was begun with, or --name for another import", n)
	}
	return line, nil
}

// chunk is a piece of the file: lines with their tags.
type chunk struct {
	first uint64 // the number of the first line
	lines [][]byte
	tags  []chainTag
	err   error // what comes after the lines, io.EOF at the end
}

// chunkBytes is about how many bytes of lines are encoded at once.
const chunkBytes = 768 << 10

// chunk reads the next piece of at most most lines, and more if an atomic batch
// would not be whole.
func (l *lines) chunk(most int) chunk {
	c := chunk{first: l.n + 1}
	for bytes := 0; c.err == nil; {
		if len(c.lines) >= most || bytes >= chunkBytes {
			together, err := l.continues(c.lines[len(c.lines)-1])
			if c.err = err; !together {
				break
			}
		}
		line, err := l.next()
		if err != nil {
			c.err = err
			break
		}
		c.lines, c.tags = append(c.lines, line), append(c.tags, l.tag())
		bytes += len(line)
	}
	return c
}

// continues reports whether the next line is in the same atomic batch as one.
func (l *lines) continues(line []byte) (bool, error) {
	of := namedAtomic(line)
	if of == nil {
		return false, nil
	}
	for len(l.first) == 0 {
		next, err := l.read()
		if err != nil {
			return false, err
		}
		l.first = next
	}
	next := namedAtomic(l.first)
	return next != nil && *next == *of, nil
}

// namedAtomic returns the atomic batch that a line names, nil if it names none.
func namedAtomic(line []byte) *atomicRange {
	if !bytes.Contains(line, []byte("atomic")) && !bytes.Contains(line, []byte(`\u`)) {
		return nil
	}
	var named struct {
		Atomic *atomicRange `json:"atomic"`
	}
	if json.Unmarshal(line, &named) != nil {
		return nil
	}
	return named.Atomic
}

// importBatch is a batch message of an import.
type importBatch struct {
	first  uint64      // the number of its first line
	header nats.Header // of an atomic batch, nil otherwise
	data   []byte
	ends   []int // of each line in data
	err    error // what comes in place of the next line, io.EOF at the end
}

// lines names the lines of an atomic batch.
func (b *importBatch) lines() string {
	return fmt.Sprintf("lines %d to %d, an atomic batch,", b.first, b.first+uint64(len(b.ends))-1)
}

// expectingNothing returns a batch of one transaction, or an atomic batch, that
// commits only in an empty partition.
func (b *importBatch) expectingNothing() *importBatch {
	one := *b
	if b.header != nil {
		one.header = maps.Clone(b.header)
		one.header.Set(subjects.HeaderExpectedLast, "0")
		return &one
	}
	headers := int(binary.BigEndian.Uint32(b.data))
	block := b.data[8 : 8+headers-2] // without the empty line at its end
	block = subjects.AppendBlockEnd(subjects.AppendField(append([]byte(nil), block...), subjects.HeaderExpectedLast, "0"))
	one.data = binary.BigEndian.AppendUint32(nil, uint32(len(block)))
	one.data = append(append(append(one.data, b.data[4:8]...), block...), b.data[8+headers:]...)
	one.ends = []int{len(one.data)}
	return &one
}

// after returns the batch without its lines up to the n-th.
func (b *importBatch) after(n uint64) *importBatch {
	skip := int(n + 1 - b.first)
	if skip <= 0 {
		return b
	}
	cut := b.ends[skip-1]
	rest := &importBatch{first: n + 1, data: b.data[cut:], err: b.err}
	for _, end := range b.ends[skip:] {
		rest.ends = append(rest.ends, end-cut)
	}
	return rest
}

// lineEncoder encodes lines as transactions of batch messages.
type lineEncoder struct {
	id      string // of the import
	plain   bool   // no headers are added
	count   int    // transactions of a message, so that its answer fits
	most    int    // bytes of a message
	largest int    // bytes of a transaction
}

// encode returns the batches of a chunk. The last one says what comes after
// them.
func (e *lineEncoder) encode(c chunk) (all []*importBatch) {
	b := &importBatch{first: c.first}
	for len(c.lines) > 0 {
		group, err := c.group()
		switch {
		case err == nil && len(group) > 1:
			var whole *importBatch
			if whole, err = e.encodeAtomic(c, group); err == nil {
				if len(b.ends) > 0 {
					all = append(all, b)
				}
				all = append(all, whole)
				b = &importBatch{first: c.first + uint64(len(group))}
			}
		case err == nil:
			all, b, err = e.encodeLine(all, b, c, group[0])
		}
		if err != nil {
			b.err = err
			return append(all, b)
		}
		c.first, c.lines, c.tags = c.first+uint64(len(group)), c.lines[len(group):], c.tags[len(group):]
	}
	b.err = c.err
	return append(all, b)
}

// encodeLine adds the transaction of a chunk's first line to b, or to another
// batch after it.
func (e *lineEncoder) encodeLine(all []*importBatch, b *importBatch, c chunk, t *transaction) ([]*importBatch, *importBatch, error) {
	start := len(b.data)
	var id [128]byte
	data, size, err := e.appendLine(b.data, appendLineID(id[:0], e.id, c.first, c.tags[0]), t)
	if err != nil {
		return all, b, usagef("line %d: %w", c.first, plain(err))
	}
	// One that may be too large is sent alone: if it is refused, none after
	// it is in the log.
	alone := size > e.largest-128
	if len(b.ends) > 0 && (len(data) > e.most || alone) {
		all = append(all, b)
		b = &importBatch{first: c.first}
		data = append([]byte(nil), data[start:]...)
	}
	b.data, b.ends = data, append(b.ends, len(data))
	if alone {
		all = append(all, b)
		b = &importBatch{first: c.first + 1}
	}
	return all, b, nil
}

// group decodes the first line of a chunk, and those that are in the same
// atomic batch.
func (c *chunk) group() (group []*transaction, err error) {
	for i, line := range c.lines {
		t, err := decodeTransaction(line)
		if err != nil && i > 0 {
			break // it is of no group
		}
		if err != nil {
			return nil, usagef("line %d: %w", c.first, plain(err))
		}
		if i > 0 && !t.sameAtomic(group[0]) {
			break
		}
		if i > 0 && t.Txid != 0 && t.Txid <= group[i-1].Txid {
			return nil, usagef("line %d: its txid is %d, and that of the line before, which is in the same atomic batch, %d", c.first+uint64(i), t.Txid, group[i-1].Txid)
		}
		if group = append(group, t); t.Atomic == nil {
			break
		}
		if uint64(len(group)) > t.Atomic.size() {
			return nil, usagef("lines %d to %d: the atomic batch %s has %d transactions, and this is one more", c.first, c.first+uint64(i), t.Atomic, t.Atomic.size())
		}
	}
	return group, nil
}

// encodeAtomic returns a batch of the first lines of a chunk, which are an
// atomic batch. Its message id is that of the last one: all of them are in the
// log, or none.
func (e *lineEncoder) encodeAtomic(c chunk, group []*transaction) (*importBatch, error) {
	last := len(group) - 1
	b := &importBatch{first: c.first, header: nats.Header{
		subjects.HeaderAtomic: {"true"}, subjects.HeaderMsgID: {string(appendLineID(nil, e.id, c.first+uint64(last), c.tags[last]))},
	}}
	for i, t := range group {
		data, _, err := e.appendLine(b.data, nil, t)
		if err != nil {
			return nil, usagef("line %d: %w", c.first+uint64(i), plain(err))
		}
		b.data, b.ends = data, append(b.ends, len(data))
	}
	switch {
	case len(group) > e.count:
		return nil, usagef("%s have more transactions than the NATS server's max_payload allows, which are %d: leave out atomic in them, and each is appended alone", b.lines(), e.count)
	case len(b.data) > e.most:
		return nil, usagef("%s have %d bytes with the headers that an import adds: at most %d are allowed; leave out atomic in these lines, and each is appended alone, or import with --keep into an empty partition",
			b.lines(), len(b.data), e.most)
	}
	return b, nil
}

// appendLine appends a line's transaction to a batch message, with a message id
// unless it is in an atomic batch. size is that of the transaction.
func (e *lineEncoder) appendLine(dst, id []byte, t *transaction) (_ []byte, size int, err error) {
	start := len(dst)
	dst = append(dst, 0, 0, 0, 0, 0, 0, 0, 0)
	dst = subjects.AppendBlockStart(dst)
	if id != nil {
		dst = subjects.AppendField(dst, subjects.HeaderMsgID, id)
	}
	if t.Kind != "" && t.Kind != subjects.DefaultKind {
		if err := subjects.CheckKind(t.Kind); err != nil {
			return dst[:start], 0, err
		}
		dst = subjects.AppendField(dst, subjects.HeaderKind, t.Kind)
	}
	if dst, err = appendRecorded(dst, t); err != nil {
		return dst[:start], 0, err
	}
	if dst, err = e.appendHeaders(dst, t); err != nil {
		return dst[:start], 0, err
	}
	dst = subjects.AppendBlockEnd(dst)
	size = len(dst) - start - 8 + t.size()
	if size > e.largest {
		return dst[:start], 0, fmt.Errorf("with the headers that an import adds, the transaction has %d bytes: at most %d are allowed; --plain adds fewer", size, e.largest)
	}
	binary.BigEndian.PutUint32(dst[start:], uint32(len(dst)-start-8))
	binary.BigEndian.PutUint32(dst[start+4:], uint32(t.size()))
	return t.appendPayload(dst), size, nil
}

// appendRecorded appends the locks that the transaction recorded, as append
// locks.
func appendRecorded(dst []byte, t *transaction) ([]byte, error) {
	n := len(t.WriteLocks) + len(t.AppendLocks)
	if n > subjects.MaxLocks {
		return dst, fmt.Errorf("%d locks: at most %d are allowed", n, subjects.MaxLocks)
	}
	locks := t.AppendLocks
	if len(t.WriteLocks) > 0 {
		locks = append(t.WriteLocks[:len(t.WriteLocks):len(t.WriteLocks)], locks...)
	}
	for _, name := range locks {
		if err := checkLockName(name); err != nil {
			return dst, err
		}
	}
	return subjects.AppendLocks(dst, subjects.HeaderAppendLock, locks...), nil
}

// appendHeaders appends the application's headers, and those that say where the
// transaction comes from. A transaction that was imported before keeps the
// latter.
func (e *lineEncoder) appendHeaders(dst []byte, t *transaction) ([]byte, error) {
	again := false
	for _, h := range t.Headers {
		if err := checkHeader(h); err != nil {
			return dst, err
		}
		again = again || h.key == headerOriginalTime
		dst = subjects.AppendField(dst, h.key, h.value)
	}
	own := 3 // message id, kind, locks
	if !e.plain && !again {
		own += 3
		if !t.Time.IsZero() {
			dst = append(dst, headerOriginalTime+": "...)
			dst = append(t.Time.UTC().AppendFormat(dst, time.RFC3339Nano), "\r\n"...)
		}
		if t.Txid > 0 {
			dst = append(dst, headerOriginalTxid+": "...)
			dst = append(strconv.AppendUint(dst, t.Txid, 10), "\r\n"...)
		}
		if t.MsgID != "" {
			if err := checkMsgID(t.MsgID); err != nil {
				return dst, err
			}
			dst = subjects.AppendField(dst, headerOriginalMsgID, t.MsgID)
		}
	}
	if n := len(t.Headers) + own; n > subjects.MaxHeaders {
		return dst, fmt.Errorf("with those that an import adds, it has up to %d headers: at most %d are allowed; --plain adds fewer", n, subjects.MaxHeaders)
	}
	return dst, nil
}

// hasOriginals reports whether an import adds headers to a transaction, to say
// where it comes from.
func (t *transaction) hasOriginals() bool {
	return !t.hasHeader(headerOriginalTime) && (!t.Time.IsZero() || t.Txid > 0 || t.MsgID != "")
}

// appendLineID appends the message id of a line.
func appendLineID(dst []byte, id string, n uint64, tag chainTag) []byte {
	dst = append(append(dst, "import-"...), id...)
	dst = strconv.AppendUint(append(dst, '-'), n, 10)
	return hex.AppendEncode(append(dst, '-'), tag[:])
}

// parseLineID is the reverse of appendLineID, for the lines of an import.
func parseLineID(msgID, id string) (n uint64, tag chainTag, ok bool) {
	rest, ok := strings.CutPrefix(msgID, "import-"+id+"-")
	number, digits, ok2 := strings.Cut(rest, "-")
	n, err := strconv.ParseUint(number, 10, 64)
	decoded, err2 := hex.DecodeString(digits)
	if !ok || !ok2 || err != nil || err2 != nil || len(decoded) != len(tag) || n == 0 {
		return 0, tag, false
	}
	return n, chainTag(decoded), true
}

// batches encodes the lines in the background, a few batches ahead. They come
// in order; the last one has an error. The goroutines end when stop is closed
// or after the last batch.
func (e *lineEncoder) batches(l *lines, stop <-chan struct{}) <-chan *importBatch {
	out := make(chan *importBatch)
	chunks := make(chan (<-chan []*importBatch), runtime.GOMAXPROCS(0))
	go func() { // reads, and has each chunk encoded
		defer close(chunks)
		for {
			c := l.chunk(e.count)
			encoded := make(chan []*importBatch, 1)
			go func() { encoded <- e.encode(c) }()
			select {
			case chunks <- encoded:
			case <-stop:
				return
			}
			if c.err != nil {
				return
			}
		}
	}()
	go func() {
		defer close(out)
		for encoded := range chunks {
			for _, b := range <-encoded {
				select {
				case out <- b:
				case <-stop:
					return
				}
			}
		}
	}()
	return out
}
