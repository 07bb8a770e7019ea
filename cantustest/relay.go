package cantustest

import (
	"crypto/ed25519"
	"encoding/binary"
	"encoding/json"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/subjects"
)

// relay forwards requests from the outer prefix to the node's own prefix, and
// the answers back. It preserves the order of messages without a fault.
type relay struct {
	nc    *nats.Conn
	outer string
	rules *rules
	key   ed25519.PrivateKey // signs the feed under the outer prefix
	inbox string

	closing chan struct{}
	delayed sync.WaitGroup

	mu      sync.Mutex
	lastID  uint64
	pending map[string]*request // by the inbox of the answer
	late    []func()            // send the answers that LateAnswer keeps
}

// request is a request that was forwarded.
type request struct {
	reply string
	to    string // the subject
	multi bool   // answered by several messages
	info  bool   // about the cluster
	fault Fault
	parts int // messages of the answer so far
}

func newRelay(n *broker.Node, outer string, rules *rules, key ed25519.PrivateKey) (*relay, error) {
	nc, err := n.Conn()
	if err != nil {
		return nil, err
	}
	r := &relay{
		nc: nc, outer: outer, rules: rules, key: key, inbox: nc.NewInbox() + ".",
		closing: make(chan struct{}), pending: map[string]*request{},
	}
	if err := r.subscribe(n.Partitions()); err != nil {
		r.close()
		return nil, err
	}
	return r, nil
}

// subscribe subscribes to exactly the subjects that the node answers, so that
// the others have no responders here either.
func (r *relay) subscribe(partitions int) error {
	names := subjects.Names{Prefix: r.outer}
	on := map[string]Verb{names.AppendKey("*"): Append, names.Info(): Info}
	for p := range partitions {
		on[names.Append(p)], on[names.Batch(p)] = Append, Append
		on[names.Read(p)], on[names.ReplicaRead(p)] = Read, Read
		on[names.Get(p)], on[names.PartitionInfo(p)] = Get, Info
		on[names.Cursor(p, "*")] = Cursor
	}
	for subject, verb := range on {
		if err := r.listen(subject, func(m *nats.Msg) { r.onRequest(verb, m) }); err != nil {
			return err
		}
	}
	for subject, handle := range map[string]nats.MsgHandler{
		inner + ".feed.>": r.onFeed, inner + ".advisory.>": r.onAdvisory, r.inbox + "*": r.onAnswer,
	} {
		if err := r.listen(subject, handle); err != nil {
			return err
		}
	}
	return r.nc.Flush()
}

func (r *relay) listen(subject string, handle nats.MsgHandler) error {
	sub, err := r.nc.Subscribe(subject, handle)
	if err != nil {
		return err
	}
	return sub.SetPendingLimits(-1, -1)
}

func (r *relay) close() {
	r.mu.Lock() // handlers may still run
	close(r.closing)
	r.mu.Unlock()
	r.delayed.Wait()
	r.nc.Close()
}

// afterDelay calls do after d, or when release is closed if it is not nil. It
// does so at once if there is neither.
func (r *relay) afterDelay(d time.Duration, release <-chan struct{}, do func()) {
	if d == 0 && release == nil {
		do()
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	select {
	case <-r.closing:
		return
	default:
	}
	r.delayed.Go(func() {
		over := make(<-chan time.Time)
		if release == nil {
			over = time.After(d)
		}
		select {
		case <-over:
		case <-release:
		case <-r.closing:
			return
		}
		do()
	})
}

// publish ignores errors: once the relay is closed nobody waits for the
// message.
func (r *relay) publish(subject, reply string, header nats.Header, data []byte) {
	_ = r.nc.PublishMsg(&nats.Msg{Subject: subject, Reply: reply, Header: header, Data: data})
}

func (r *relay) onRequest(verb Verb, m *nats.Msg) {
	r.mu.Lock()
	late := r.late
	r.late = nil
	r.mu.Unlock()
	for _, send := range late {
		send()
	}
	f := r.rules.faultFor(verb, m)
	switch {
	case f.drop:
	case f.noResponders:
		r.publish(m.Reply, "", nats.Header{"Status": {"503"}}, nil)
	case f.err != nil:
		r.refuse(m, f.err, f.whole)
	default:
		r.afterDelay(f.delay, f.release, func() {
			r.forward(verb, m, f)
			if f.repeat {
				r.forward(verb, m, f)
			}
		})
	}
}

// forward sends a request to the node.
func (r *relay) forward(verb Verb, m *nats.Msg, f Fault) {
	subject := inner + strings.TrimPrefix(m.Subject, r.outer)
	reply := ""
	if m.Reply != "" {
		r.mu.Lock()
		r.lastID++
		reply = r.inbox + strconv.FormatUint(r.lastID, 36)
		r.pending[reply] = &request{reply: m.Reply, to: m.Subject, multi: verb == Read, info: m.Subject == r.outer+".info", fault: f}
		r.mu.Unlock()
	}
	r.publish(subject, reply, m.Header, m.Data)
}

// onAnswer forwards one message of an answer.
func (r *relay) onAnswer(m *nats.Msg) {
	r.mu.Lock()
	q := r.pending[m.Subject]
	ended := q != nil && (!q.multi || m.Header.Get("Status") != "" || m.Header.Get(subjects.HeaderErrorCode) != "")
	if ended {
		delete(r.pending, m.Subject)
	}
	lost := q == nil || q.fault.loseAnswer
	if q != nil {
		q.parts++
		lost = lost || q.parts == q.fault.losePart && !ended
	}
	r.mu.Unlock()
	if lost {
		return
	}
	header, data := r.translateHeaders(m.Header), m.Data
	if q.info {
		data = r.replaceFeedKey(data)
	}
	switch {
	case q.fault.answerErr != nil:
		header, data = refusal(q.to, q.fault.answerErr)
	case q.fault.garble:
		header, data = nil, []byte(`{"partition":0,"results":[{"ind`)
	}
	send := func() {
		r.publish(q.reply, "", header, data)
		if q.fault.repeatAnswer {
			r.publish(q.reply, "", header, data)
		}
	}
	if q.fault.lateAnswer {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.late = append(r.late, send)
		return
	}
	r.afterDelay(q.fault.answerDelay, nil, send)
}

// translateHeaders replaces the node's prefix in headers by the outer one.
func (r *relay) translateHeaders(h nats.Header) nats.Header {
	id := h.Get(subjects.HeaderMsgID)
	if rest, ok := strings.CutPrefix(id, inner+"."); ok {
		h.Set(subjects.HeaderMsgID, r.outer+"."+rest)
	}
	return h
}

// replaceFeedKey replaces the feed key in a description of the cluster by the
// relay's.
func (r *relay) replaceFeedKey(body []byte) []byte {
	var info subjects.ClusterInfo
	if json.Unmarshal(body, &info) != nil || info.FeedKey == "" {
		return body // a refusal
	}
	info.FeedKey = subjects.FeedKey(r.key.Public().(ed25519.PublicKey))
	return mustJSON(info)
}

func (r *relay) onFeed(m *nats.Msg) {
	f := r.rules.faultFor(Feed, m)
	if f.drop || f.loseAnswer || f.noResponders || f.err != nil {
		return
	}
	packed, err := pack(m)
	if err != nil { // impossible: the node made it
		return
	}
	names, partition := subjects.Names{Prefix: r.outer}, partitionOf(m.Subject)
	signature := sign(r.key, partition, packed)
	subject, header := r.outer+strings.TrimPrefix(m.Subject, inner), r.translateHeaders(m.Header)
	if f.alter {
		m.Data = append(slices.Clone(m.Data), " altered"...)
		packed, _ = pack(m) // cannot fail: it succeeded before
	}
	publish := func() {
		r.publish(names.PackedFeed(partition), "", signature, packed)
		r.publish(subject, "", header, m.Data)
	}
	r.afterDelay(f.delay+f.answerDelay, f.release, func() {
		if f.forge {
			forged := *m
			forged.Data = []byte("forged")
			packed, _ := pack(&forged)
			r.publish(names.PackedFeed(partition), "", sign(newKey(), partition, packed), packed)
			r.publish(subject, "", header, forged.Data)
		}
		publish()
		if f.repeat || f.repeatAnswer {
			publish()
		}
	})
}

func newKey() ed25519.PrivateKey {
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		panic(err) // reading random bytes cannot fail
	}
	return key
}

// sign returns the headers of a packed message.
func sign(key ed25519.PrivateKey, partition int, packed []byte) nats.Header {
	hashes := string(subjects.AppendFeedHash(nil, packed))
	return nats.Header{
		subjects.HeaderHashes:    {hashes},
		subjects.HeaderSignature: {subjects.SignFeed(key, partition, hashes)},
	}
}

// pack returns the packed form of a single transaction of the feed. The relay
// always sends both forms, one transaction per message, so that a fault affects
// exactly one.
func pack(m *nats.Msg) ([]byte, error) {
	txid, err := strconv.ParseUint(m.Header.Get(subjects.HeaderTxid), 10, 64)
	if err != nil {
		return nil, err
	}
	at, err := time.Parse(time.RFC3339Nano, m.Header.Get(subjects.HeaderTime))
	if err != nil {
		return nil, err
	}
	block := subjects.AppendBlockStart(nil)
	for key, values := range m.Header {
		switch key {
		case subjects.HeaderTxid, subjects.HeaderPartition, subjects.HeaderTime, subjects.HeaderMsgID:
			continue
		}
		for _, v := range values {
			block = subjects.AppendField(block, key, v)
		}
	}
	block = subjects.AppendBlockEnd(block)
	return subjects.AppendPacked(nil, subjects.Packed{Txid: txid, Time: at.UnixNano(), Header: block, Payload: m.Data}), nil
}

func (r *relay) onAdvisory(m *nats.Msg) {
	r.publish(r.outer+strings.TrimPrefix(m.Subject, inner), "", m.Header, m.Data)
}

// refuse replies in place of the node. A refusal that concerns the contents of
// a batch is sent for each of its transactions.
func (r *relay) refuse(m *nats.Msg, err *subjects.Error, whole bool) {
	mark := uint64(0)
	partition := partitionOf(m.Subject)
	if !whole && strings.HasPrefix(m.Subject, r.outer+".batch.") && err.Code < 500 && err.Reason != subjects.Busy {
		reply := subjects.BatchReply{Partition: partition, HighWaterMark: &mark}
		for i := range frames(m.Data) {
			reply.Results = append(reply.Results, subjects.BatchRun{Index: i, Count: 1, Error: err})
		}
		r.publish(m.Reply, "", nil, mustJSON(reply))
		return
	}
	header, data := refusal(m.Subject, err)
	r.publish(m.Reply, "", header, data)
}

// refusal returns the answer that refuses a request to a subject.
func refusal(subject string, err *subjects.Error) (nats.Header, []byte) {
	mark := uint64(0)
	return nats.Header{
		subjects.HeaderErrorCode: {strconv.Itoa(err.Code)},
		subjects.HeaderError:     {string(err.Reason) + ": " + err.Message},
	}, mustJSON(subjects.Reply{Partition: partitionOf(subject), Error: err, HighWaterMark: &mark})
}

// partitionOf returns the partition in a subject, 0 if there is none.
func partitionOf(subject string) int {
	for token := range strings.SplitSeq(subject, ".") {
		if n, err := strconv.Atoi(token); err == nil {
			return n
		}
	}
	return 0
}

// frames returns the number of transactions in a batch message.
func frames(b []byte) (n int) {
	for len(b) >= 8 {
		size := 8 + int(binary.BigEndian.Uint32(b)) + int(binary.BigEndian.Uint32(b[4:]))
		if size > len(b) {
			break
		}
		b = b[size:]
		n++
	}
	return n
}

func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // cannot fail for structs of numbers and strings
	}
	return b
}
