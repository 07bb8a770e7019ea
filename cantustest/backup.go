package cantustest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/subjects"
)

// Backup is a backup of a log, in memory.
type Backup struct {
	cluster    string
	partitions []partitionBackup
}

type partitionBackup struct {
	info    subjects.PartitionInfo
	stream  []byte // as requests for batches and restores have it
	cursors []subjects.CursorPosition
}

// Backup returns a backup of the log as it is now. It bypasses the relay and
// its faults. Nothing may be appended meanwhile.
func (l *Log) Backup(ctx context.Context) (*Backup, error) {
	nc, err := l.node.Conn()
	if err != nil {
		return nil, err
	}
	defer nc.Close()
	names := subjects.Names{Prefix: inner}
	var info subjects.ClusterInfo
	if err := ask(ctx, nc, names.Info(), nil, &info); err != nil {
		return nil, err
	}
	b := &Backup{cluster: info.ID}
	for p := range l.opts.Partitions {
		var part partitionBackup
		var cursors subjects.CursorsReply
		err := errors.Join(ask(ctx, nc, names.PartitionInfo(p), nil, &part.info), ask(ctx, nc, names.Cursors(p), nil, &cursors))
		if err == nil && part.info.HighWaterMark > 0 {
			part.stream, err = readBatches(ctx, nc, names.Admin("batches", strconv.Itoa(p)))
		}
		if err != nil {
			return nil, fmt.Errorf("back up partition %d: %w", p, err)
		}
		part.cursors = cursors.Cursors
		b.partitions = append(b.partitions, part)
	}
	return b, nil
}

// Restore replaces the log by one of another cluster that is restored from a
// backup. Connections are lost, and reconnect to the new one.
func (l *Log) Restore(ctx context.Context, b *Backup) error {
	if err := errors.Join(l.stop(), os.RemoveAll(l.dir)); err != nil {
		return err
	}
	l.key = newKey()
	if err := l.startNode(ctx); err != nil {
		return err
	}
	nc, err := l.node.Conn()
	if err != nil {
		return err
	}
	defer nc.Close()
	for p, part := range b.partitions {
		if err := part.restore(ctx, nc, subjects.Names{Prefix: inner}.Admin("restore", strconv.Itoa(p)), b.cluster); err != nil {
			return fmt.Errorf("restore partition %d: %w", p, err)
		}
	}
	return l.startRelay() // so no client sees the partitions empty
}

func (b *partitionBackup) restore(ctx context.Context, nc *nats.Conn, subject, cluster string) error {
	last := b.info.HighWaterMark
	steps := []subjects.RestoreRequest{{Begin: &subjects.RestoreBegin{Cluster: cluster}}}
	for _, c := range b.cursors {
		steps = append(steps, subjects.RestoreRequest{Cursors: []subjects.RestoredCursor{{Name: c.Name, Txid: c.Txid, Time: c.Time}}})
	}
	steps = append(steps, subjects.RestoreRequest{End: &subjects.RestoreEnd{
		Txid: last, Digest: b.info.Digest,
		History: append(b.info.History, subjects.PastCluster{Cluster: cluster, LastTxid: last}),
	}})
	for i, step := range steps {
		body, err := json.Marshal(step)
		if err != nil {
			return err
		}
		var at subjects.RestoreReply
		if err := ask(ctx, nc, subject, &nats.Msg{Data: body}, &at); err != nil {
			return err
		}
		if i > 0 {
			continue
		}
		const most = 512 << 10
		for rest := b.stream; len(rest) > 0; {
			n := min(most, len(rest))
			m := &nats.Msg{Data: rest[:n], Header: nats.Header{}}
			m.Header.Set(subjects.HeaderPrevious, strconv.FormatUint(at.HighWaterMark, 10))
			m.Header.Set(subjects.HeaderOffset, strconv.Itoa(at.Joined))
			if err := ask(ctx, nc, subject, m, &at); err != nil {
				return err
			}
			rest = rest[n:]
		}
	}
	return nil
}

// ask sends a request, and decodes the answer into reply. It returns a refusal
// as an error.
func ask(ctx context.Context, nc *nats.Conn, subject string, m *nats.Msg, reply any) error {
	if m == nil {
		m = &nats.Msg{}
	}
	m.Subject = subject
	answer, err := nc.RequestMsgWithContext(ctx, m)
	if err != nil {
		return err
	}
	var refused struct {
		Error *subjects.Error `json:"error"`
	}
	if err := errors.Join(json.Unmarshal(answer.Data, &refused), json.Unmarshal(answer.Data, reply)); err != nil {
		return err
	}
	if refused.Error != nil {
		return refused.Error
	}
	return nil
}

// readBatches returns the stream of all batches.
func readBatches(ctx context.Context, nc *nats.Conn, subject string) (stream []byte, err error) {
	inbox := nc.NewInbox()
	sub, err := nc.SubscribeSync(inbox)
	if err != nil {
		return nil, err
	}
	defer func() { _ = sub.Unsubscribe() }()
	for next := uint64(1); ; {
		body := fmt.Appendf(nil, `{"from":%d}`, next)
		if err := nc.PublishRequest(subject, inbox, body); err != nil {
			return nil, err
		}
		for {
			m, err := sub.NextMsgWithContext(ctx)
			if err != nil {
				return nil, err
			}
			if m.Header.Get(subjects.HeaderError) != "" {
				return nil, errors.New(m.Header.Get(subjects.HeaderError))
			}
			if m.Header.Get("Status") != subjects.StatusEnd {
				stream = append(stream, m.Data...)
				continue
			}
			mark, err := strconv.ParseUint(m.Header.Get(subjects.HeaderHighWaterMark), 10, 64)
			if err != nil {
				return nil, err
			}
			if next, err = strconv.ParseUint(m.Header.Get(subjects.HeaderNext), 10, 64); err != nil || next > mark {
				return stream, err
			}
			break
		}
	}
}
