package wal

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/table"
	"github.com/dgraph-io/ristretto/v2/z"
)

// checkTables reads Badger's registry, its manifest and all of its tables before
// Badger does. Badger reads tables in goroutines of its own, where one that is
// cut short or damaged in the wrong place ends the process, opens without a
// table whose checksum is wrong, and leaves goroutines behind when it does not
// open. Tables hold keys and small values: most bytes are in value logs.
func checkTables(o badger.Options) error {
	f, err := os.Open(filepath.Join(o.Dir, badger.ManifestFilename))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	registry, err := badger.OpenKeyRegistry(badger.KeyRegistryOptions{Dir: o.Dir, ReadOnly: true})
	if err == nil {
		err = registry.Close()
	}
	if err != nil {
		return errors.Join(err, f.Close())
	}
	manifest, _, err := badger.ReplayManifestFile(f, o.ExternalMagicVersion, o)
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("read %s: %w", f.Name(), err)
	}
	for id := range manifest.Tables {
		if err := checkTable(table.NewFilename(id, o.Dir), o); err != nil {
			return err
		}
	}
	return nil
}

func checkTable(path string, o badger.Options) (err error) {
	file, err := z.OpenMmapFile(path, os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, file.Close(-1))
		if err != nil {
			err = fmt.Errorf("table %s: %w", path, err)
		}
	}()
	defer recoverDamage(&err)
	t, err := table.OpenTable(file, table.Options{ChkMode: o.ChecksumVerificationMode})
	if err != nil {
		return err
	}
	return t.VerifyChecksum()
}
