package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/internal/backup"
	"github.com/cantuslog/cantus/wal"
)

// archive is a backup as the node reads it.
type archive struct{ *backup.Archive }

// Batches implements [broker.Archive].
func (a archive) Batches(ctx context.Context, partition int, from uint64, base wal.Base) ([]wal.Batch, error) {
	all, err := a.Archive.Batches(ctx, partition, from, base)
	if errors.Is(err, backup.ErrNotArchived) {
		err = fmt.Errorf("%w: %s", broker.ErrNotArchived, strings.TrimPrefix(err.Error(), backup.ErrNotArchived.Error()+": "))
	}
	return all, err
}

// archiveLook is how often a node looks for a newer manifest, for what info
// shows.
const archiveLook = time.Minute

// openArchive opens the archive of a node, and looks at it now and then until
// the context ends. An archive that can't be read, or is not there yet, does
// not keep the node from serving.
func openArchive(ctx context.Context, where string, log *slog.Logger) (archive, error) {
	repository, err := backup.Open(ctx, where, backup.Options{Logger: log})
	if err != nil {
		return archive{}, usagef("--archive: %w", err)
	}
	a := archive{backup.NewArchive(repository)}
	go func() {
		for failed := ""; ctx.Err() == nil; {
			err := a.Refresh(ctx)
			switch {
			case err == nil:
				failed = ""
			case ctx.Err() == nil && err.Error() != failed:
				failed = err.Error()
				log.Warn("the archive can't be read", "archive", where, "err", err)
			}
			select {
			case <-ctx.Done():
			case <-time.After(archiveLook):
			}
		}
	}()
	return a, nil
}
