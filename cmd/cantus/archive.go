package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/internal/backup"
	"github.com/cantuslog/cantus/wal"
)

// archive is a backup as the node reads it.
type archive struct {
	*backup.Archive
	where string
}

// wrap returns an error of a backup as the broker knows it. Only one that
// clients are not shown names the place.
func (a archive) wrap(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, backup.ErrNotArchived):
		return fmt.Errorf("%w: %s", broker.ErrNotArchived, strings.TrimPrefix(err.Error(), backup.ErrNotArchived.Error()+": "))
	}
	return fmt.Errorf("archive %s: %w", a.where, err)
}

// Batches implements [broker.Archive].
func (a archive) Batches(ctx context.Context, partition int, from uint64, base wal.Base) ([]wal.Batch, error) {
	all, err := a.Archive.Batches(ctx, partition, from, base)
	return all, a.wrap(err)
}

// Find implements [broker.Archive].
func (a archive) Find(ctx context.Context, partition int, at int64, from uint64, base wal.Base) (uint64, error) {
	txid, err := a.Archive.Find(ctx, partition, at, from, base)
	return txid, a.wrap(err)
}

// Check implements [broker.Archive].
func (a archive) Check(ctx context.Context, partition int, base wal.Base, clusters []string) (uint64, error) {
	first, err := a.Archive.Check(ctx, partition, base, clusters)
	return first, a.wrap(err)
}

// openArchive opens the archive of a node. One that can't be read, or is not
// there yet, does not keep the node from serving.
func openArchive(ctx context.Context, where string, log *slog.Logger) (archive, error) {
	repository, err := backup.Open(ctx, where, backup.Options{Logger: log})
	if err != nil {
		return archive{}, usagef("--archive: %s", strings.ReplaceAll(err.Error(), where, withoutCredentials(where)))
	}
	return archive{backup.NewArchive(repository), where}, nil
}

// withoutCredentials returns the place of a backup without the user and the
// query that its URL may have: a signature may be among them.
func withoutCredentials(where string) string {
	scheme, rest, ok := strings.Cut(where, "://")
	if !ok {
		return where
	}
	place, query, found := strings.Cut(rest, "?")
	host, _, _ := strings.Cut(place, "/")
	if i := strings.LastIndex(host, "@"); i >= 0 {
		place = "…@" + strings.TrimPrefix(place, host[:i+1])
	}
	if found && query != "" {
		place += "?…"
	}
	return scheme + "://" + place
}
