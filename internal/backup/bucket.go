package backup

import (
	"context"
	"errors"
	"io/fs"
	"time"
)

// Bucket is where objects are stored: a directory, or a bucket of an object
// store. Objects appear and disappear as a whole.
type Bucket interface {
	// Put stores an object. If there is one of that name, Put replaces it, or
	// returns an error that wraps fs.ErrExist if the object has to be new.
	// When Put returns nil the object is durable.
	Put(ctx context.Context, name string, data []byte, mustBeNew bool) error
	// Get returns an object of at most limit bytes; the error wraps
	// fs.ErrNotExist if there is none.
	Get(ctx context.Context, name string, limit int64) ([]byte, error)
	// List returns the objects whose names begin with prefix, in the order of
	// their names. The prefix is empty or ends in a slash.
	List(ctx context.Context, prefix string) ([]Object, error)
	// Delete deletes an object; it is no error if there is none.
	Delete(ctx context.Context, name string) error
	Close() error
}

// Object is an object in a list.
type Object struct {
	Name    string
	Size    int64
	Written time.Time
}

// Errors of a repository.
var (
	// ErrNone is returned if there is no backup.
	ErrNone = errors.New("there is no backup there")
	// ErrDamaged is returned for stored bytes that are not what was written,
	// and for a missing object.
	ErrDamaged = errors.New("damaged")
	// ErrNewer is returned for a backup that a newer version of Cantus wrote.
	ErrNewer = errors.New("a newer version of Cantus wrote the backup")
	// ErrOther is returned if the cluster is not the one of the backup, or has
	// another log.
	ErrOther = errors.New("the backup is of another log")
	// ErrGap is returned if transactions were trimmed before they were backed
	// up.
	ErrGap = errors.New("transactions are missing between the backup and the log")
)

// errTooLarge is returned for an object that is larger than its manifest says.
var errTooLarge = errors.New("the object is larger than it should be")

func isMissing(err error) bool { return errors.Is(err, fs.ErrNotExist) }
