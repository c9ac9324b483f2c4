//go:build !linux

package pagecache

import (
	"errors"
	"os"
)

type run struct{ off, n int64 }

var errPlatform = errors.New("the page cache can be measured on Linux only")

func resident(*os.File, int64, int64) (int64, error)    { return 0, errPlatform }
func missingRuns(*os.File, int64, int64) ([]run, error) { return nil, errPlatform }
func dontNeed(*os.File) error                           { return errPlatform }
