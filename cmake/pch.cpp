// The precompiled header needs a source file in the target that owns it.
