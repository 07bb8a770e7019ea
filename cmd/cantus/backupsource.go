package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/internal/backup"
	"github.com/cantuslog/cantus/subjects"
	"github.com/cantuslog/cantus/wal"
)

// backupSource is a cluster that is backed up over NATS. It asks again for up
// to a time when a partition has no leader, or the connection is lost.
type backupSource struct {
	conn *natsConn
	// pause is between two attempts.
	pause time.Duration
	// patience is how long it asks again without an answer.
	patience time.Duration
	// cursor is one that is not backed up, "" for none: it says how far the
	// backup reaches, which means nothing in a cluster that is restored.
	cursor string
	// trouble is the reason for the last retry, nil if there was none.
	trouble error
}

func newBackupSource(l *natsConn) *backupSource {
	return &backupSource{conn: l, pause: 250 * time.Millisecond, patience: 30 * time.Second}
}

// again calls do until it succeeds, fails for good, or nothing has moved for
// the source's patience. do reports whether anything has.
func (s *backupSource) again(ctx context.Context, do func() (moved bool, err error)) error {
	for since := time.Now(); ; {
		moved, err := do()
		if moved {
			since = time.Now()
		}
		transient := isTransient(err) || errors.Is(err, nats.ErrNoResponders) || errors.Is(err, errLost)
		if !transient || ctx.Err() != nil || time.Since(since) > s.patience {
			return err
		}
		if err != nil {
			s.trouble = err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(s.pause):
		}
	}
}

// waited returns the reason for the last retry as text for people.
func (s *backupSource) waited() error {
	if errors.Is(s.trouble, nats.ErrNoResponders) {
		return errors.New("no node answered")
	}
	return s.conn.explain(s.trouble)
}

// ask asks the leader of a partition.
func (s *backupSource) ask(ctx context.Context, partition int, subject string, request, answer any) error {
	err := s.again(ctx, func() (bool, error) { return false, s.conn.ask(ctx, subject, request, answer) })
	if errors.Is(err, nats.ErrNoResponders) {
		err = s.conn.noLeader(ctx, partition)
	}
	return s.conn.explain(err)
}

// info asks for the cluster's description, again if the answer is lost. If no
// node is there it returns at once: waiting will hardly help.
func (s *backupSource) info(ctx context.Context) (info subjects.ClusterInfo, err error) {
	nobody := false
	err = s.again(ctx, func() (moved bool, err error) {
		err = s.conn.ask(ctx, s.conn.names.Info(), nil, &info)
		if nobody = errors.Is(err, nats.ErrNoResponders); nobody {
			return false, nil
		}
		return false, err
	})
	if nobody {
		return s.conn.cluster(ctx)
	}
	return info, s.conn.explain(err)
}

// Cluster implements [backup.Source].
func (s *backupSource) Cluster(ctx context.Context) (backup.Cluster, error) {
	info, err := s.info(ctx)
	if err == nil && info.ID == "" {
		err = failf(exitFailed, "the nodes are of a version that has no backups: upgrade them first")
	}
	if err == nil {
		err = s.conn.checkWhole(info)
	}
	return backup.Cluster{Name: info.Cluster, ID: info.ID, Partitions: info.Partitions}, err
}

// Cursors implements [backup.Source].
func (s *backupSource) Cursors(ctx context.Context, partition int) (all []subjects.CursorPosition, err error) {
	for after := ""; ; {
		var page subjects.CursorsReply
		err := s.ask(ctx, partition, s.conn.names.Cursors(partition), subjects.CursorsRequest{After: after}, &page)
		if err != nil {
			return nil, err
		}
		for _, c := range page.Cursors {
			if c.Name != s.cursor {
				all = append(all, c)
			}
		}
		if page.Next == "" {
			return all, nil
		}
		after = page.Next
	}
}

// State implements [backup.Source].
func (s *backupSource) State(ctx context.Context, partition int) (backup.State, error) {
	var info subjects.PartitionInfo
	if err := s.ask(ctx, partition, s.conn.names.PartitionInfo(partition), nil, &info); err != nil {
		return backup.State{}, err
	}
	if info.MirrorOf != "" {
		return backup.State{}, failf(exitFailed, "it is a mirror of cluster %s: back that one up, or promote the mirror first", info.MirrorOf)
	}
	return backup.State{
		Base:    backup.Point{Txid: info.FirstTxid - 1, Digest: info.BaseDigest},
		Last:    backup.Point{Txid: info.HighWaterMark, Digest: info.Digest},
		History: info.History, Namespace: belongsTo(info),
	}, nil
}

// Batches implements [backup.Source].
func (s *backupSource) Batches(ctx context.Context, partition int, from, to uint64, each func(wal.Batch) error) error {
	for from <= to {
		var failed error // of each, which is not tried again
		err := s.again(ctx, func() (bool, error) {
			was := from
			request := subjects.BatchesRequest{From: from, MaxBytes: subjects.MaxReadBytes}
			_, err := s.page(ctx, partition, request, func(b wal.Batch) (bool, error) {
				if failed = each(b); failed != nil {
					return true, failed
				}
				from = b.Last() + 1
				return from > to, nil
			})
			if failed != nil || from > to {
				return true, nil //nolint:nilerr // all that was wanted is there
			}
			if err == nil && from == was {
				err = errLost
			}
			return from > was, err
		})
		switch {
		case failed != nil:
			return failed
		case errors.Is(err, nats.ErrNoResponders):
			return s.conn.noLeader(ctx, partition)
		case err != nil:
			return s.conn.explain(err)
		}
	}
	return nil
}

// page requests batches, and calls each for those that come, until it reports
// that it wants no more. At the end it returns the high-water mark.
func (s *backupSource) page(ctx context.Context, partition int, request subjects.BatchesRequest, each func(wal.Batch) (done bool, err error)) (mark uint64, err error) {
	ctx, stop := s.conn.untilTrouble(ctx)
	defer stop()
	inbox := s.conn.nc.NewInbox()
	sub, err := s.conn.nc.SubscribeSync(inbox)
	if err != nil {
		return 0, err
	}
	defer sub.Unsubscribe() // the connection may be gone
	// The request bounds a page, so there is no limit here that drops messages.
	if err := sub.SetPendingLimits(-1, -1); err != nil {
		return 0, err
	}
	body, err := json.Marshal(request)
	if err != nil {
		return 0, err
	}
	if err := s.conn.nc.PublishRequest(s.conn.names.Admin("batches", strconv.Itoa(partition)), inbox, body); err != nil {
		return 0, err
	}
	wait, _ := time.ParseDuration(request.Wait)
	last := request.From - 1
	var stream []byte // that is not split into batches yet
	for received := uint64(0); ; {
		msg, err := nextMessage(ctx, sub, s.conn.timeout+wait)
		if err != nil {
			return 0, err
		}
		if e := refused(msg); e != nil {
			return 0, batchRefusal(e)
		}
		if msg.Header.Get("Status") == subjects.StatusEnd {
			if msg.Header.Get(subjects.HeaderCount) != strconv.FormatUint(received, 10) {
				return 0, errLost
			}
			return strconv.ParseUint(msg.Header.Get(subjects.HeaderHighWaterMark), 10, 64)
		}
		if msg.Header.Get(subjects.HeaderPrevious) != strconv.FormatUint(received, 10) {
			return 0, errLost
		}
		received += uint64(len(msg.Data))
		stream = append(stream, msg.Data...)
		rest := stream
		for {
			b, next, err := backup.NextBatch(rest)
			if errors.Is(err, backup.ErrShort) {
				break
			}
			if err != nil {
				return 0, fmt.Errorf("a batch after txid %d: %w", last, err)
			}
			if done, err := each(b); done || err != nil {
				return 0, err
			}
			rest, last = next, b.Last()
		}
		stream = stream[:copy(stream, rest)]
	}
}

func batchRefusal(e *subjects.Error) error {
	if e.Reason == subjects.Trimmed {
		return fmt.Errorf("%w: the log was trimmed up to txid %d meanwhile: %w", backup.ErrGap, e.FirstTxid-1, e)
	}
	return refusal(e)
}
