# The tiny guest: 512 bytes at the end of a 64 KiB firmware, from the reset vector into 64-bit mode.
#
# Real mode alone proves nothing: a host that interprets it instruction by instruction still may not be
# able to run a kernel. So this switches on protection, paging and long mode, as every kernel does, and
# only then writes its sign of life to the port of the isa-debug-exit device.
#
# Assemble: as probe.S -o probe.o && ld -Ttext=0xfe00 --oformat=binary probe.o -o probe.bin

        .code16
        .globl _start
_start:
real:   cli
        mov     %cs, %ax
        mov     %ax, %ds
        lgdtl   gdt_pointer
        mov     %cr0, %eax
        or      $1, %eax                # protection
        mov     %eax, %cr0
        ljmpl   $0x08, $0xffff0000 + protected

        .code32
protected:
        mov     $0x10, %ax
        mov     %ax, %ds
        mov     %ax, %es
        mov     %ax, %ss
        xor     %eax, %eax              # page tables at 0x1000 to 0x4fff
        mov     $0x1000, %edi
        mov     $0x1000, %ecx
        cld
        rep stosl
        movl    $0x2003, 0x1000         # level 4 to level 3
        movl    $0x3003, 0x2000         # level 3: first GiB
        movl    $0x4003, 0x2018         # level 3: fourth GiB
        movl    $0x00000083, 0x3000     # 2 MiB at 0
        movl    $0xffe00083, 0x4ff8     # 2 MiB below 4 GiB, where this code is
        mov     $0x1000, %eax
        mov     %eax, %cr3
        mov     %cr4, %eax
        or      $0x20, %eax             # physical address extension
        mov     %eax, %cr4
        mov     $0xc0000080, %ecx       # EFER: long mode
        rdmsr
        or      $0x100, %eax
        wrmsr
        mov     %cr0, %eax
        or      $0x80000000, %eax       # paging
        mov     %eax, %cr0
        ljmpl   $0x18, $0xffff0000 + long

        .code64
long:   mov     $0x0123456789abcdef, %rax
        mov     %rax, 0x8000            # a 64-bit write through the page tables
        cmp     %rax, 0x8000
        jne     stop
        mov     $0x2a, %al
        out     %al, $0xf4
stop:   hlt
        jmp     stop

        .balign 8
gdt:    .quad   0
        .quad   0x00cf9a000000ffff      # 32-bit code
        .quad   0x00cf92000000ffff      # data
        .quad   0x00af9a000000ffff      # 64-bit code
gdt_pointer:
        .word   gdt_pointer - gdt - 1
        .long   0xffff0000 + gdt

        .org    0x1f0
        .code16
reset:  jmp     real
        .org    0x200
